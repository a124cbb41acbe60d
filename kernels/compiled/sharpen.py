"""The highest logits of a rounded product, once more from the weights that were not rounded.

Shapes  V vocabulary, K columns
"""

from __future__ import annotations

from typing import Any

from numba import float32, int32, int64

from .native import floats, halves, longs, loop, real, widen
from .operation import operation
from .products import centre, root
from .record import (
    BF16,
    T_BATCH,
    T_BIAS,
    T_CENTRED,
    T_COLUMNS,
    T_COUNT,
    T_EPS,
    T_HIDDEN,
    T_KIND,
    T_LOGITS,
    T_NORM,
    T_ROWS,
    T_WEIGHT,
    WIDTH,
)

_BLOCK = 64
"""Logits that are only counted, in a loop without a branch, unless some of them are among the highest."""


def sharpen_bytes(columns: int, count: int) -> int:
    """Bytes that `sharpen` needs of a thread's own memory."""
    return 8 * count + 4 * columns


@operation
def sharpen(row: int, item: int, scratch: int) -> None:
    """The logits of one sequence."""
    op = longs(row, WIDTH)
    count, columns = op[T_COUNT], op[T_COLUMNS]
    logits = floats(op[T_LOGITS], (op[T_BATCH], op[T_ROWS]))[item]
    hidden = floats(op[T_HIDDEN], (op[T_BATCH], columns))[item]
    ids, x = longs(scratch, count), floats(scratch + 8 * count, columns)
    _highest(logits, ids)
    for i in range(columns):
        x[i] = hidden[i]
    if op[T_CENTRED] != 0:
        centre(x)
    scale, norm = root(x, float32(real(op[T_EPS]))), floats(op[T_NORM], columns)
    for i in range(columns):
        x[i] = x[i] * scale * norm[i]
    for n in range(count):
        total = float32(0)
        if op[T_KIND] == BF16:
            half = halves(op[T_WEIGHT] + 2 * ids[n] * columns, columns)
            for i in range(columns):
                total += x[i] * widen(half[i])
        else:
            wide = floats(op[T_WEIGHT] + 4 * ids[n] * columns, columns)
            for i in range(columns):
                total += x[i] * wide[i]
        if op[T_BIAS] != 0:
            total += floats(op[T_BIAS], op[T_ROWS])[ids[n]]
        logits[ids[n]] = total


@loop
def _highest(logits: Any, ids: Any) -> None:
    """The places of the highest logits, in any order; of equal ones, those that come first."""
    count, rows = ids.shape[0], logits.shape[0]
    for n in range(count):
        ids[n] = n
    least = _least(logits, ids)
    for begin in range(count, rows, _BLOCK):
        end, bound, higher = min(begin + _BLOCK, rows), logits[ids[least]], int32(0)
        for i in range(begin, end):
            higher += int32(logits[i] > bound)
        if higher > 0:
            for i in range(begin, end):
                if logits[i] > logits[ids[least]]:
                    ids[least] = i
                    least = _least(logits, ids)


@loop
def _least(logits: Any, ids: Any) -> Any:
    """Where the lowest of them is."""
    found = int64(0)
    for n in range(1, ids.shape[0]):
        if logits[ids[n]] < logits[ids[found]]:
            found = int64(n)
    return found
