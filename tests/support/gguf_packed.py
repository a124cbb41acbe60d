"""GGUF files whose matrices are of given types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gguf
import numpy as np
from gguf_models import Entry

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
"""Rows that the K types can pack."""


def packed(values: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """A tensor's bytes in that type, and the type. Of the K types, which gguf cannot write: any bits, small scales."""
    of = gguf.GGMLQuantizationType[kind]
    if not kind.endswith("_K"):
        return gguf.quantize(np.ascontiguousarray(values), of), of
    size = gguf.GGML_QUANT_SIZES[of][1]
    rng = np.random.default_rng(values.size)
    data = rng.integers(0, 256, (*values.shape[:-1], values.shape[-1] // 256, size), dtype=np.uint8)
    scales = np.array([0.001], np.float16).view(np.uint8)
    for begin in [208] if kind == "Q6_K" else [0, 2]:
        data[..., begin : begin + 2] = scales
    return data.reshape(*values.shape[:-1], -1), of


def typed(kinds: list[str], inner: Any = None) -> Any:
    """Give each matrix a type in turn, after `inner` has changed the tensor."""
    count = iter(range(1000))

    def change(name: str, values: np.ndarray) -> Iterable[Entry]:
        for entry in [(name, values)] if inner is None else inner(name, values):
            called, numbers = entry[0], entry[1]
            if numbers.ndim >= 2 and called.endswith(".weight"):
                data, of = packed(numbers, kinds[next(count) % len(kinds)])
                yield called, data, of
            else:
                yield called, numbers

    return change
