"""Products of one to a few vectors with weights as a GGUF file has them: y[b, r] = W[r] . x[b], W read block by block.

A weight is scale * number + minimum, where scale and minimum are the same for 16 or 32 numbers of a row, so that

    W[r] . x = sum over blocks of scale * (numbers . x) + sum over blocks of minimum * (sum of x)

x stays fp32, and nothing is rounded but sums. A row's result is the same to the bit for any number of vectors; four at a
time share the work of reading a row.

Code is compiled for a kind when it is first asked for: eight kinds take eight times as long, and a file has two or three.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import cfunc, float32, types
from numba.extending import intrinsic

from .block_scales import WITH_MINIMA, loop, reader, room
from .block_sums import BLOCK_BYTES, BLOCK_NUMBERS, HALVES, HIGH, LOW, WHOLE, arrange, leave, no_sums, with_block, with_minima
from .native import FAST, floats
from .record import Q4_0, Q4_1, Q4_K, Q6_K


TOGETHER = 4096
"""Numbers whose scales are read at once, those of several rows if they are short."""


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row. Columns must be a multiple of BLOCK_NUMBERS[kind]: else a file has no rows of whole blocks."""
    return columns // BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind]


def prepared_bytes(columns: int, batch: int) -> int:
    """Bytes that each thread needs for `prepare` and `rows`."""
    return 4 * (batch + 1) * (columns + columns // 32) + room(max(columns, TOGETHER))


@loop
def _vectors(batch: int) -> int:
    """Vectors that `prepare` leaves: they are taken one or four at a time, and three are four."""
    return batch + 1 if batch % 4 == 3 else batch


@loop
def prepare(kind: int, x: int, columns: int, batch: int, prepared: int) -> None:
    """Write x, fp32 [batch, columns], to `prepared` as the rows of a kind want it: fp32 [vectors, columns] as `arrange`
    leaves it, then fp32 [vectors, columns / 32], the sums of each 32 numbers of x. A vector too many is zeros."""
    blocks, vectors = columns // 32, _vectors(batch)
    given, ordered = floats(x, (batch, blocks, 32)), floats(prepared, (vectors, columns))
    sums = floats(prepared + 4 * vectors * columns, (vectors, blocks))
    for b in range(batch):
        for i in range(blocks):
            total = float32(0)
            for j in range(32):
                total += given[b, i, j]
            sums[b, i] = total
    for i in range(batch * blocks):
        at, to = x + 128 * i, prepared + 128 * i
        if kind == Q4_0 or kind == Q4_1:
            arrange(HALVES, at, to)
        elif kind != Q4_K:
            arrange(WHOLE, at, to)
        elif i % 2 == 0:
            arrange(LOW, at, to)
        else:
            arrange(HIGH, at, to)
    if vectors > batch:
        for i in range(columns):
            ordered[batch, i] = float32(0)
        for i in range(blocks):
            sums[batch, i] = float32(0)


@cache
def rows(kind: int) -> Any:
    """The product with rows of one kind, as C code can call it (`.address`): eight int64, nothing returned.

    rows(weight, columns, prepared, batch, begin, end, y, stride): y[b, r] = W[r] . x[b] for begin <= r < end.
        weight: address of the first row; the next begins `row_bytes` behind it.
        prepared: address of what `prepare` left.
        y: address of fp32 [batch, stride].
    """
    numbers, octets, read, added = BLOCK_NUMBERS[kind], BLOCK_BYTES[kind], reader(kind), kind in WITH_MINIMA
    step = numbers // 16 * 4 if kind == Q6_K else numbers // 32 * 4

    @loop
    def over_row(sums, row, columns, scales, x, minima, of_x, ahead):
        blocks = columns // 32
        if added:
            for i in range(blocks // 8):
                sums = with_minima(sums, 8, minima + 32 * i, of_x + 32 * i, 4 * blocks)
            for i in range(blocks // 8 * 8, blocks):
                sums = with_minima(sums, 1, minima + 4 * i, of_x + 4 * i, 4 * blocks)
        for i in range(columns // numbers):
            sums = with_block(sums, row + i * octets, scales + i * step, x + i * numbers * 4, 4 * columns, ahead)
        return sums

    @cfunc(types.void(*[types.int64] * 8), fastmath=FAST, error_model="numpy")
    def product(weight, columns, prepared, batch, begin, end, y, stride):
        vectors, blocks, pitch = _vectors(batch), columns // 32, columns // numbers * octets
        sums = prepared + 4 * vectors * columns
        scales = sums + 4 * vectors * blocks
        together = max(1, TOGETHER // columns)
        minima = scales + 4 * together * (columns // 16)
        behind = minima + 4 * together * blocks
        for first in range(begin, end, together):
            last = min(first + together, end)
            read(weight + first * pitch, (last - first) * columns, scales, minima, behind)
            for r in range(first, last):
                row, scale, minimum = weight + r * pitch, scales + (r - first) * columns // numbers * step, minima + (r - first) * blocks * 4
                b = 0
                while vectors - b >= 4:
                    four = over_row(no_sums(kind, 4), row, columns, scale, prepared + 4 * b * columns, minimum, sums + 4 * b * blocks, together * pitch)
                    leave(four, y + 4 * (b * stride + r), 4 * stride, batch - b)
                    b += 4
                while b < batch:
                    one = over_row(no_sums(kind, 1), row, columns, scale, prepared + 4 * b * columns, minimum, sums + 4 * b * blocks, together * pitch)
                    leave(one, y + 4 * (b * stride + r), 4 * stride, 1)
                    b += 1

    return product


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
