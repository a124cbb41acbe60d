"""Rows of GGUF blocks become fp32 to the bit as gguf's own code makes them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.widening import widen

KINDS = {
    r.Q8_0: "Q8_0", r.Q4_0: "Q4_0", r.Q4_1: "Q4_1", r.Q5_0: "Q5_0", r.Q5_1: "Q5_1", r.Q4_K: "Q4_K", r.Q5_K: "Q5_K",
    r.Q6_K: "Q6_K", r.MXFP4: "MXFP4",
}  # fmt: skip


def drawn(kind: int, rows: int, columns: int, seed: int) -> np.ndarray:
    """Rows of any bits at all, but for scales that are no numbers or too large for their products."""
    numbers, size = r.BLOCKS[kind]
    data = np.random.default_rng(seed).integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    at = {r.Q6_K: [208]}.get(kind, [0, 2] if kind in (r.Q4_1, r.Q5_1, r.Q4_K, r.Q5_K) else [0])
    for begin in at:
        halves = data[..., begin : begin + 2].copy().view(np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] &= 0xBFFF
        data[..., begin : begin + 2] = halves.view(np.uint8)
    return data.reshape(rows, -1)


def expected(kind: int, data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[KINDS[kind]]))


def widened(kind: int, data: np.ndarray, columns: int, count: int, **fields: int) -> np.ndarray:
    out = np.full((count, columns), np.nan, dtype=np.float32)
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.W_WEIGHT, r.W_COLUMNS, r.W_COUNT, r.W_OUT]] = data.ctypes.data, columns, count, out.ctypes.data
    row[r.W_CHUNK] = 3
    for name, value in fields.items():
        row[getattr(r, f"W_{name.upper()}")] = value
    for item in range(-(-count // 3)):
        widen(kind)(row.ctypes.data, item, 0)
    return out


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.get)
def test_all_rows_some_rows_and_rows_in_pairs(kind: int) -> None:
    columns = 2 * r.BLOCKS[kind][0]
    data = drawn(kind, 8, columns, kind)
    whole = expected(kind, data)
    assert widened(kind, data, columns, 8).tobytes() == whole.tobytes()
    ids = np.array([7, 0, 3, 3], dtype=np.int64)
    assert widened(kind, data, columns, 4, ids=ids.ctypes.data).tobytes() == whole[ids].tobytes()
    halves = whole.reshape(2, 2, 2, columns).transpose(0, 2, 1, 3).reshape(8, columns)
    assert widened(kind, data, columns, 8, pairs=4).tobytes() == halves.tobytes()
    assert widened(kind, data, columns, 0).shape == (0, columns)
