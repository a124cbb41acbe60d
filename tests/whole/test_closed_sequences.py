"""A sequence that is closed holds no memory, whether Python has looked for cycles or not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime

CASES = {
    "llama": {"index": "spectral"},
    "llama kept": {"index": "bounds", "placement": "h2o:keep=0.5"},
    "gemma3_text": {"index": "bounds"},
    "gemma4_text": {"index": "bounds"},
    "qwen3_5_text": {"index": "bounds"},
    "glm4_moe_lite": {"index": "bounds"},
}


def held() -> int:
    """Bytes of all tensors that somebody holds, memory that several look at once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


@contextmanager
def nobody_looks_for_cycles() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_closed_sequence_is_held(name: str, tmp_path: Path) -> None:
    family = name.split()[0]
    folder = save_tiny_model(tmp_path / "model", family=family)
    kv = KVConfig(path=tmp_path / "kv", disk_gb=0, budget=112, local=32, **CASES[name])
    ids = np.random.default_rng(0).integers(3, VOCABULARY, 300).astype(np.uint32)
    with Runtime.load(folder, dtype="float32", kv=kv) as runtime, nobody_looks_for_cycles():
        grown = []
        for _ in range(3):
            sequence = runtime.engine.new_sequence()
            logits = runtime.engine.prefill(sequence, ids, reuse=False).logits
            assert logits is not None
            for _ in range(3):
                logits = runtime.engine.decode([sequence], [int(logits.argmax())])[0]
            twin = runtime.engine.fork(sequence)
            twin.close()
            sequence.close()
            del sequence, twin, logits
            grown.append(held())
        assert grown[2] - grown[1] < 4096, "the first one makes what is there for good"
