"""Products of one to a few vectors with weights as a GGUF file has them: y[b, r] = W[r] . x[b], W read block by block.

A weight is scale * number + minimum, where scale and minimum are the same for 16 or 32 numbers of a row, so that

    W[r] . x = sum over blocks of scale * (numbers . x) + sum over blocks of minimum * (sum of x)

x stays fp32, and nothing is rounded but sums. A row's result is the same to the bit for any number of vectors; four at
a time share the work of taking a block apart.

Code is compiled for a kind when it is first asked for (`rows`), and called by its address: all eight kinds in one
function would cost everybody the time of eight, and a file has two or three.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic

from .block_code import BLOCK_BYTES, BLOCK_NUMBERS, HALVES, HIGH, LOW, WHOLE
from .block_sums import FACTORS, arrange, leave, no_sums, with_block
from .native import floats, loop
from .operation import Operation
from .record import Q4_0, Q4_1, Q4_K, Q5_1


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row. Columns must be a multiple of BLOCK_NUMBERS[kind]: else a file has no rows of whole blocks."""
    return columns // BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind]


def prepared_bytes(columns: int, batch: int) -> int:
    """Bytes that each thread needs for `prepare` and `rows`."""
    return 4 * (batch + 1) * (columns + columns // 16) + 64


@loop
def _vectors(batch: int) -> int:
    """Vectors that `prepare` leaves: they are taken one or four at a time, and three are four."""
    return batch + 1 if batch % 4 == 3 else batch


@loop
def prepare(kind: int, x: int, columns: int, batch: int, prepared: int) -> None:
    """Write x, fp32 [batch, columns], to `prepared` as the rows of a kind want it: fp32 [vectors, columns] as `arrange`
    leaves it, then fp32 [vectors, columns / 16] with the sums of each 32 numbers. A vector too many is zeros."""
    blocks, vectors = columns // 32, _vectors(batch)
    given, ordered = floats(x, (batch, blocks, 32)), floats(prepared, (vectors, columns))
    sums = floats(prepared + 4 * vectors * columns, (vectors, 2 * blocks))
    for b in range(vectors):
        for i in range(2 * blocks):
            sums[b, i] = float32(0)
    factor = float32(-8) if kind == Q4_0 else float32(1)  # its numbers are taken as 0 to 15, and are -8 to 7
    step, first = (2, 1) if kind in (Q4_1, Q5_1) else (1, 0)  # a block has scale and minimum side by side
    even, odd = WHOLE, WHOLE
    if kind in (Q4_0, Q4_1):
        even, odd = HALVES, HALVES
    elif kind == Q4_K:
        even, odd = LOW, HIGH
    for b in range(batch):
        for i in range(blocks):
            total = float32(0)
            for j in range(32):
                total += given[b, i, j]
            sums[b, step * i + first] = factor * total
            at, factors = 128 * (b * blocks + i), FACTORS[odd if i % 2 else even]
            arrange(x + at, factors.ctypes.data, prepared + at)
    for b in range(batch, vectors):
        for i in range(columns):
            ordered[b, i] = float32(0)


@cache
def rows(kind: int) -> Operation:
    """The product with rows of one kind: eight int64, nothing returned.

    rows(weight, columns, prepared, batch, begin, end, y, stride): y[b, r] = W[r] . x[b] for begin <= r < end.
        weight: address of the first row; the next begins `row_bytes` behind it.
        prepared: address of what `prepare` left.
        y: address of fp32 [batch, stride].
    """
    numbers, octets = BLOCK_NUMBERS[kind], BLOCK_BYTES[kind]
    sums_step = 8 if kind in (Q4_1, Q5_1) else numbers // 8

    def product(
        weight: int, columns: int, prepared: int, batch: int, begin: int, end: int, y: int, stride: int
    ) -> None:
        vectors, blocks, pitch, sums_pitch = _vectors(batch), columns // numbers, 4 * columns, columns // 4
        sums = prepared + vectors * pitch
        room = sums + vectors * sums_pitch
        for r in range(begin, end):
            row, b = weight + r * blocks * octets, 0
            while vectors - b >= 4:
                four, x, of_x = no_sums(kind, 4), prepared + b * pitch, sums + b * sums_pitch
                for i in range(blocks):
                    four = with_block(
                        four, row + i * octets, x + 4 * numbers * i, pitch, of_x + sums_step * i, sums_pitch, room
                    )
                leave(four, y + 4 * (b * stride + r), 4 * stride, batch - b)
                b += 4
            while b < batch:
                one, x, of_x = no_sums(kind, 1), prepared + b * pitch, sums + b * sums_pitch
                for i in range(blocks):
                    one = with_block(
                        one, row + i * octets, x + 4 * numbers * i, pitch, of_x + sums_step * i, sums_pitch, room
                    )
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
