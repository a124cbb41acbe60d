"""Products of one to a few vectors with weights in blocks: y[b, r] = W[r] . x[b], W read block by block.

A weight is scale * number + minimum, where scale and minimum are the same for 16 or 32 numbers of a row, so that

    W[r] . x = sum over blocks of scale * (numbers . x) + sum over blocks of minimum * (sum of x)

Exact products take x in fp32, and nothing is rounded but sums. Rounded ones take 32 numbers of x at a time as integers
of 16 bits, steps of 1/32767 of the largest of them: some hundred times finer than bfloat16's own steps. A row's result
is the same to the bit for any number of vectors; four at a time share the work of taking a block apart.

The kinds are those that a GGUF file has, and I8: 32 integers without a scale of their own.

Code is compiled for a kind when it is first asked for (`rows`), and called by its address: all kinds in one function
would cost everybody the time of all, and a file has two or three.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic

from .block_code import BLOCK_BYTES, BLOCK_NUMBERS
from .block_sums import leave, leave_exact, leave_rounded, no_sums, with_block
from .native import fetch_ahead, floats, loop, shorts
from .operation import Operation

_STEPS = 32767
"""Of x, from 0 to the largest of 32 numbers."""
_FETCHED = 1024
"""Bytes that are fetched at a time, ahead: of a long row all at once would be more than a core can wait for."""
_ROOM = 64
_LEAST = 1e-30
"""Where the largest is less, all are taken for 0: their step could not be divided by."""


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row. Columns must be a multiple of BLOCK_NUMBERS[kind]: else there are no rows of whole blocks."""
    return columns // BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind]


def prepared_bytes(columns: int, batch: int) -> int:
    """Bytes that each thread needs for `prepare` and `rows`."""
    return (batch + 1) * (4 * columns + columns // 4 + 64 + _ROOM)


@loop
def _vectors(batch: int) -> int:
    """Vectors that `prepare` leaves: they are taken one or four at a time, and three are four."""
    return batch + 1 if batch % 4 == 3 else batch


@loop
def _scales_at(columns: int, rounded: int) -> int:
    """Bytes from a vector's numbers to its scales, one for each 32 numbers; as many sums of 32 numbers follow."""
    return 2 * columns if rounded != 0 else 4 * columns


@loop
def vector_bytes(columns: int, rounded: int) -> int:
    """Bytes from a vector to the next. Room for `with_block` is behind each: one may be multiplied alone."""
    return (_scales_at(columns, rounded) + columns // 4 + 63) // 64 * 64 + _ROOM


@loop
def prepare(x: int, columns: int, batch: int, rounded: int, prepared: int) -> None:
    """Write x, fp32 [batch, columns], to `prepared` as `rows` want it: numbers, scales, sums of each vector. A vector
    too many is zeros."""
    blocks, scales_at, pitch = columns // 32, _scales_at(columns, rounded), vector_bytes(columns, rounded)
    for b in range(_vectors(batch)):
        given, at = floats(x + 4 * b * columns, (blocks, 32)), prepared + b * pitch
        if b >= batch:
            for i in range(pitch // 4):
                floats(at, pitch // 4)[i] = float32(0)
            continue
        scales, sums = floats(at + scales_at, blocks), floats(at + scales_at + 4 * blocks, blocks)
        for i in range(blocks):
            total = float32(0)
            if rounded != 0:
                step = _step(given[i])
                numbers = shorts(at + 64 * i, 32)
                leave_rounded(x + 4 * (b * columns + 32 * i), step, at + 64 * i)
                for j in range(32):
                    total += float32(numbers[j])
                scales[i], sums[i] = step, step * total
            else:
                leave_exact(x + 4 * (b * columns + 32 * i), at + 128 * i)
                for j in range(32):
                    total += given[i, j]
                sums[i] = total


@loop
def _step(x: Any) -> Any:
    """Of 32 numbers. NaN if one of them is no number or is infinite."""
    most, total = float32(0), float32(0)
    for i in range(32):
        most = max(most, abs(x[i]))
        total += abs(x[i])
    if not total < float32(math.inf):
        return float32(math.nan)
    return most / float32(_STEPS) if most >= float32(_LEAST) else float32(0)


@cache
def rows(kind: int, *, rounded: bool) -> Operation:
    """The product with rows of one kind: eight int64, nothing returned.

    rows(weight, columns, prepared, batch, begin, end, y, stride): y[b, r] = W[r] . x[b] for begin <= r < end.
        weight: address of the first row; the next begins `row_bytes` behind it.
        prepared: address of what `prepare` left, as `rounded` says.
        y: address of fp32 [batch, stride].
    """
    numbers, octets, way = BLOCK_NUMBERS[kind], BLOCK_BYTES[kind], int(rounded)
    size, step, few = numbers * (2 if rounded else 4), numbers // 8, max(1, _FETCHED // octets)

    def product(
        weight: int, columns: int, prepared: int, batch: int, begin: int, end: int, y: int, stride: int
    ) -> None:
        vectors, blocks, pitch = _vectors(batch), columns // numbers, vector_bytes(columns, way)
        scales = _scales_at(columns, way)
        sums, room = scales + columns // 8, prepared + vectors * pitch - _ROOM
        row_size = blocks * octets
        b = 0
        while vectors - b >= 4:
            x = prepared + b * pitch
            for r in range(begin, end):
                row, four = weight + r * row_size, no_sums(kind, 4, way)
                for first in range(0, blocks, few):
                    fetch_ahead(row + first * octets, min(few, blocks - first) * octets)
                    for i in range(first, min(first + few, blocks)):
                        at, of_x, step_i = row + i * octets, x + size * i, step * i
                        four = with_block(four, at, of_x, x + scales + step_i, x + sums + step_i, pitch, room)
                leave(four, y + 4 * (b * stride + r), 4 * stride, batch - b)
            b += 4
        while b < batch:
            x = prepared + b * pitch
            for r in range(begin, end):
                row, one = weight + r * row_size, no_sums(kind, 1, way)
                for first in range(0, blocks, few):
                    fetch_ahead(row + first * octets, min(few, blocks - first) * octets)
                    for i in range(first, min(first + few, blocks)):
                        at, of_x, step_i = row + i * octets, x + size * i, step * i
                        one = with_block(one, at, of_x, x + scales + step_i, x + sums + step_i, pitch, room)
                leave(one, y + 4 * (b * stride + r), 4 * stride, 1)
            b += 1

    return Operation(product, 8)


@intrinsic
def call_rows(
    context: Any, address: Any, weight: Any, columns: Any, prepared: Any, batch: Any, begin: Any, end: Any, y: Any,
    stride: Any,
) -> Any:  # fmt: skip
    """From compiled code, call a `rows` by its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 8)
        builder.call(builder.inttoptr(args[0], of.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), emit
