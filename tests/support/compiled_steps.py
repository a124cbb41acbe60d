"""Small models that decode in compiled loops, and the same tokens every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import VOCABULARY

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence

BUDGET, PAGE, PROMPT, STEPS = 96, 8, 200, 20


def opened(model: Path, index: str = "bounds", **settings: Any) -> Runtime:
    dtype, weights = settings.pop("dtype", "float32"), settings.pop("weights", "own")
    settings["dtype"] = settings.pop("kv_dtype", "auto")
    kv = {"index": index, "budget": BUDGET, "sink": 8, "local": 16, "page_size": PAGE, "disk_gb": 0, "host_gb": 0.05}
    return Runtime.load(model, dtype=dtype, weights=weights, kv=KVConfig(**{**kv, **settings}))


def prompted(engine: Engine, length: int = PROMPT) -> Sequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, np.random.default_rng(length).integers(3, VOCABULARY, length).astype(np.uint32))
    return sequence


def decoded(engine: Engine, sequences: list[Sequence], steps: int = STEPS) -> torch.Tensor:
    """Logits `[steps, B, V]` of the same tokens every time."""
    rng = np.random.default_rng(3)
    return torch.stack([
        engine.decode(sequences, [int(rng.integers(3, VOCABULARY))] * len(sequences)) for _ in range(steps)
    ])  # fmt: skip
