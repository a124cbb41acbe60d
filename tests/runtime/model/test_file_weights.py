"""A GGUF file's weights as they stand in it: the same model as the converted one, and no copy of a matrix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_cases import CHANGES, cases
from gguf_models import FAMILIES, Entry, random_model, write_gguf

from stratakv.runtime import KVConfig, Runtime

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F32", "F16", "BF16"]
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
"""Rows that the K types can pack."""
PROMPT = "A text that is read before, of some tokens: 0123456789."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model.locate", "model.identity", "chat.runtime"):
        monkeypatch.setattr(f"stratakv.runtime.{module}.cache_dir", lambda: tmp_path / "cache")


def packed(values: np.ndarray, kind: str) -> Entry:
    """A tensor of that type: of the K types, which gguf cannot write, any bits with small scales."""
    of = gguf.GGMLQuantizationType[kind]
    if not kind.endswith("_K"):
        return "", gguf.quantize(np.ascontiguousarray(values), of), of
    size = gguf.GGML_QUANT_SIZES[of][1]
    rng = np.random.default_rng(values.size)
    data = rng.integers(0, 256, (values.shape[0], values.shape[1] // 256, size), dtype=np.uint8)
    scales = np.array([0.001], np.float16).view(np.uint8)
    for begin in [208] if kind == "Q6_K" else [0, 2]:
        data[..., begin : begin + 2] = scales
    return "", data.reshape(values.shape[0], -1), of


def typed(kinds: list[str], inner: Any = None) -> Any:
    """Give each matrix a type in turn, after `inner` has changed the tensor."""
    count = iter(range(1000))

    def change(name: str, values: np.ndarray) -> Iterable[Entry]:
        for entry in [(name, values)] if inner is None else inner(name, values):
            called, numbers = entry[0], entry[1]
            if numbers.ndim == 2 and called.endswith(".weight"):
                _, data, of = packed(numbers, kinds[next(count) % len(kinds)])
                yield called, data, of
            else:
                yield called, numbers

    return change


def logits(path: Path, weights: str, batch: int = 1, **settings: Any) -> tuple[list[torch.Tensor], Runtime]:
    """After a prompt, and after each of some steps."""
    kv = KVConfig(**{"disk_gb": 0, "host_gb": 0.05, "page_size": 16, "index": "bounds", "budget": 4096, **settings})
    with Runtime.load(path, device="cpu", dtype="float32", weights=weights, kv=kv) as runtime:
        engine = runtime.engine
        ids = np.array(runtime.tokenizer(PROMPT).input_ids, dtype=np.uint32)
        sequences = [engine.new_sequence() for _ in range(batch)]
        found = [engine.prefill(sequence, ids[b:]).logits for b, sequence in enumerate(sequences)]
        for step in range(3):
            found += list(engine.decode(sequences, [40 + step + b for b in range(batch)]))
        found += list(engine.decode_known(sequences[0], np.arange(30, 52, dtype=np.uint32)))
        for sequence in sequences:
            sequence.close()
        return [one for one in found if one is not None], runtime


def assert_same(path: Path, **settings: Any) -> Runtime:
    own, _ = logits(path, "own", **settings)
    mine, runtime = logits(path, "file", **settings)
    for number, (one, other) in enumerate(zip(own, mine, strict=True)):
        scale = max(1.0, float(one.abs().max()))
        assert float((one - other).abs().max()) < 1e-4 * scale, number
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        assert float((p.exp() * (p - q)).sum()) < 1e-6, number
    return runtime


@pytest.mark.parametrize("name", ["llama", "llama, biases", "llama, fused", "llama, scaled", "qwen2", "qwen3",
                                  "gemma3", "phi3", "olmo2", "smollm3"])  # fmt: skip
def test_every_family(name: str, tmp_path: Path) -> None:
    case = cases(64)[name]
    inner = CHANGES[case.change]() if case.change else None
    model = random_model(case.family, **case.settings)
    write_gguf(tmp_path / "m.gguf", model, case.family, keys=case.keys, change=typed(["Q8_0", "Q4_0", "Q8_0"], inner))
    assert_same(tmp_path / "m.gguf")
