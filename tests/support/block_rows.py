"""Rows of weights in blocks for tests, their products by compiled code, and gguf's own expansion of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.block_code import BLOCK_BYTES
from stratakv.kernels.compiled.blocks import call_rows, prepare, prepared_bytes, row_bytes, rows
from stratakv.kernels.compiled.operation import Operation

Array = np.ndarray[Any, Any]

NAMES = ["I8", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "MXFP4"]
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the fp16 of a block stand; of the others at its beginning."""
KINDS = pytest.mark.parametrize("name", NAMES)
WAYS = pytest.mark.parametrize("rounded", [False, True])


def _prepare_and_multiply(
    address: int, way: int, weight: int, x: int, columns: int, batch: int, prepared: int, begin: int, end: int, y: int,
    stride: int,
) -> None:  # fmt: skip
    prepare(x, columns, batch, way, prepared)
    call_rows(address, weight, columns, prepared, batch, begin, end, y, stride)


_product = Operation(_prepare_and_multiply, 11)
"""Kept, as those of a step are: three test files need it."""


def draw_rows(rng: np.random.Generator, name: str, count: int, columns: int, sizes: Array | None = None) -> Array:
    """Rows of blocks with any bits, and scales of these sizes."""
    kind = getattr(record, name)
    weight = rng.integers(0, 256, (count, row_bytes(kind, columns)), dtype=np.uint8)
    if name == "I8":
        return weight
    blocks = weight.reshape(-1, BLOCK_BYTES[kind])
    if name == "MXFP4":
        blocks[:, 0] = rng.integers(112, 132, len(blocks))
        return weight
    for at in SCALES.get(name, (0,)):
        drawn = rng.standard_normal(len(blocks)) if sizes is None else rng.choice(sizes, len(blocks))
        blocks[:, at : at + 2] = drawn.astype(np.float16)[:, None].view(np.uint8)
    return weight


def numbers_of(name: str, weight: Array) -> Array:
    if name == "I8":
        return weight.view(np.int8).astype(np.float64)
    return quants.dequantize(weight, GGMLQuantizationType[name]).astype(np.float64)


def vectors_of_steps(rng: np.random.Generator, batch: int, columns: int) -> Array:
    """Vectors that are whole steps of the largest of each 32 numbers, so that rounding changes nothing."""
    parts = rng.integers(-32767, 32768, (batch, columns // 32, 32))
    np.put_along_axis(parts, rng.integers(0, 32, (batch, columns // 32, 1)), 32767, -1)
    steps = 2.0 ** rng.integers(-30, -5, (batch, columns // 32, 1))
    return (parts * steps).astype(np.float32).reshape(batch, columns)


def product_of(name: str, weight: Array, x: Array, begin: int = 0, end: int | None = None, *, rounded: bool) -> Array:
    """The product, by memory that holds NaN before."""
    kind, (batch, columns) = getattr(record, name), x.shape
    end = len(weight) if end is None else end
    memory = np.full(prepared_bytes(columns, batch) // 4, np.nan, np.float32)
    y = np.full((batch, len(weight) + 3), np.nan, np.float32)
    addresses = (a.ctypes.data for a in (weight, x))
    address, kept = rows(kind, rounded=rounded).address, y[:, 1:].ctypes.data
    _product(address, int(rounded), *addresses, columns, batch, memory.ctypes.data, begin, end, kept, y.shape[1])
    assert np.isnan(y[:, : begin + 1]).all()
    assert np.isnan(y[:, end + 1 :]).all()
    return y[:, begin + 1 : end + 1]


def allowed_of(weights: Array, x: Array) -> Array:
    """What rounding may do: some units of the largest weight of each block, times x."""
    largest = abs(weights.reshape(len(weights), -1, 32)).max(-1).repeat(32, -1)
    allowed: Array = 4e-7 * (abs(x).astype(np.float64) @ largest.T)
    return allowed
