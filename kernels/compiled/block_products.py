"""Products of a step with weights in blocks: `products` with rows of `blocks`.

A thread has x as `products.make` leaves it, and behind it as blocks want it. So products with the same x make it once.
"""

from __future__ import annotations

from . import blocks
from .blocks import call_rows
from .native import floats, longs, loop
from .operation import operation, preparation
from .products import add_bias, make
from .record import (
    P_BATCH,
    P_BIAS,
    P_CHUNK,
    P_CODE,
    P_COLUMNS,
    P_ROUNDED,
    P_ROWS,
    P_SCALE,
    P_STRIDE,
    P_WEIGHT,
    P_Y,
    WIDTH,
)  # fmt: skip

_arrange = blocks.prepare


def product_bytes(batch: int, columns: int) -> int:
    """Bytes of its own that a thread needs for products of `batch` vectors."""
    return _LINE + 4 * batch * columns + blocks.prepared_bytes(columns, batch)


_LINE = 64


@loop
def arranged(scratch: int, batch: int, columns: int) -> int:
    """The address of x as blocks want it."""
    return (scratch + 4 * batch * columns + _LINE - 1) // _LINE * _LINE


@preparation
def prepare(row: int, scratch: int) -> None:
    """Make x, and arrange it for rows of blocks."""
    op = longs(row, WIDTH)
    make(op, scratch)
    batch, columns = op[P_BATCH], op[P_COLUMNS]
    _arrange(scratch, columns, batch, op[P_ROUNDED], arranged(scratch, batch, columns))


@operation
def product(row: int, item: int, scratch: int) -> None:
    """The rows of one item."""
    op = longs(row, WIDTH)
    batch, columns = op[P_BATCH], op[P_COLUMNS]
    begin = item * op[P_CHUNK]
    end = min(begin + op[P_CHUNK], op[P_ROWS])
    x, y = arranged(scratch, batch, columns), floats(op[P_Y], (batch, op[P_STRIDE]))
    call_rows(op[P_CODE], op[P_WEIGHT], columns, x, batch, begin, end, op[P_Y], op[P_STRIDE])
    if op[P_SCALE] != 0:
        scale = floats(op[P_SCALE], end)
        for b in range(batch):
            for r in range(begin, end):
                y[b, r] *= scale[r]
    if op[P_BIAS] != 0:
        add_bias(op, begin, end, y)
