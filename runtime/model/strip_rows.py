"""Strips of weights as rows of a compiled table (`kernels.compiled.record`)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...kernels.compiled import block_products, blocks, products
from ...kernels.compiled import record as r
from ...kernels.compiled.operation import Operation
from ...kernels.compiled.widening import widen
from .products import Strip

_LEAST_BYTES, _MOST_BYTES, _ITEMS = 32768, 131072, 64
"""Bytes of weights that a thread takes at a time. Where much follows, memory comes faster; but there should be enough
items for all threads to end at about the same time."""
_LEAST_ROWS = 4


def chunk_of(strip: Strip) -> int:
    """Rows of an item."""
    size = min(max(strip.rows * strip.row_bytes // _ITEMS, _LEAST_BYTES), _MOST_BYTES)
    return max(_LEAST_ROWS, size // strip.row_bytes)


def operations_of(kinds: set[int], *, rounded: bool) -> list[Operation]:
    """What rows of products with blocks of these kinds call."""
    packed = [blocks.rows(kind, rounded=rounded) for kind in sorted(kinds) if r.BLOCKS[kind][0] > 1]
    return [block_products.prepare, block_products.product, *packed] if packed else []


def fill_products(table: np.ndarray, strips: list[Strip], batch: int, y: Tensor, mark: int = r.NO_MARK) -> list[Tensor]:
    """Fill PRODUCT rows, one for each strip below the other, all but what x is made of in the first. Returns what must
    be kept as long as they are used, besides the strips.

    Args:
        y: fp32 `[B, N]`, whose rows may be apart.
    """
    kept: list[Tensor] = []

    def wide(numbers: Tensor) -> int:
        kept.append(numbers.detach().float().contiguous())
        return kept[-1].data_ptr()

    first = 0
    for row, strip, before in zip(table, strips, [None, *strips], strict=False):
        has_blocks, chunk = r.BLOCKS[strip.kind][0] > 1, chunk_of(strip)
        form = block_products if has_blocks else products
        row[[r.OPERATION, r.PREPARE]] = form.product.address, form.prepare.address
        if before is not None:
            row[r.P_SAME] = 1
            if not has_blocks or (r.BLOCKS[before.kind][0] > 1 and before.rounds == strip.rounds):
                row[r.PREPARE] = 0
        row[r.MEMORY] = form.product_bytes(batch, strip.columns)
        row[[r.ITEMS, r.BARRIER, r.MARK]] = -(-strip.rows // chunk), int(strip is strips[-1]), mark
        row[[r.P_BATCH, r.P_ROWS, r.P_COLUMNS, r.P_CHUNK]] = batch, strip.rows, strip.columns, chunk
        row[[r.P_KIND, r.P_WEIGHT]] = strip.kind, strip.address
        row[[r.P_Y, r.P_STRIDE]] = y.data_ptr() + 4 * first, y.stride(0)
        if has_blocks:
            row[[r.P_CODE, r.P_ROUNDED]] = blocks.rows(strip.kind, rounded=strip.rounds).address, strip.rounds
        if strip.scale is not None:
            row[r.P_SCALE] = wide(strip.scale)
        if strip.bias is not None:
            row[r.P_BIAS] = wide(strip.bias)
        first += strip.rows
    assert first == y.shape[1]
    return kept


def widening(strip: Strip, out: Tensor, ids: np.ndarray | None = None) -> np.ndarray:
    """A table that writes a strip's first rows, or those of int64 `ids`, to fp32 `[n, K]`."""
    assert out.is_contiguous()
    table = np.zeros((1, r.WIDTH), dtype=np.int64)
    row, chunk = table[0], chunk_of(strip)
    row[[r.OPERATION, r.ITEMS]] = widen(strip.kind).address, -(-len(out) // chunk)
    row[[r.W_WEIGHT, r.W_COLUMNS, r.W_COUNT, r.W_CHUNK]] = strip.address, strip.columns, len(out), chunk
    row[[r.W_IDS, r.W_OUT, r.W_PAIRS]] = 0 if ids is None else ids.ctypes.data, out.data_ptr(), strip.pairs
    return table
