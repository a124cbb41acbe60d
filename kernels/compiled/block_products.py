"""Products with weights as a GGUF file packs them, for steps: operations as `products` has them, one for each kind."""

from __future__ import annotations

from functools import cache

from numba import float32

from .native import call, floats, longs
from .operation import Operation, operation, preparation
from .products import prepare
from .record import (
    BLOCKS, P_BATCH, P_BIAS, P_CHUNK, P_COLUMNS, P_ROWS, P_STRIDE, P_WEIGHT, P_Y, W_CHUNK, W_COLUMNS, W_COUNT, W_OUT,
    W_WEIGHT, WIDTH,
)  # fmt: skip
from .widening import widen


def scratch_bytes(batch: int, columns: int) -> int:
    return 4 * (batch + 1) * columns + 8 * WIDTH


def block_prepare(kind: int) -> Operation:
    return prepare


@cache
def block_product(kind: int) -> Operation:
    numbers, size = BLOCKS[kind]
    address = widen(kind).address

    def product(row: int, item: int, scratch: int) -> None:
        op = longs(row, WIDTH)
        batch, rows, columns = op[P_BATCH], op[P_ROWS], op[P_COLUMNS]
        begin = item * op[P_CHUNK]
        end = min(begin + op[P_CHUNK], rows)
        x, y = floats(scratch, (batch, columns)), floats(op[P_Y], (batch, op[P_STRIDE]))
        w = floats(scratch + 4 * batch * columns, columns)
        own = longs(scratch + 4 * (batch + 1) * columns, WIDTH)
        for i in range(WIDTH):
            own[i] = 0
        for r in range(begin, end):
            own[W_WEIGHT], own[W_COLUMNS], own[W_COUNT] = op[P_WEIGHT] + r * (columns // numbers) * size, columns, 1
            own[W_CHUNK], own[W_OUT] = 1, scratch + 4 * batch * columns
            call(address, scratch + 4 * (batch + 1) * columns, 0, 0)
            for b in range(batch):
                total = float32(0)
                for i in range(columns):
                    total += w[i] * x[b, i]
                y[b, r] = total
        if op[P_BIAS] != 0:
            bias = floats(op[P_BIAS], rows)
            for r in range(begin, end):
                for b in range(batch):
                    y[b, r] += bias[r]

    return operation(product)
