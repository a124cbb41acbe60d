"""Products of a row with one vector or with four, as instructions on vectors: a row is widened once for all of them.

Sums are kept and put together in one order, however many vectors there are, so a batch and a single sequence compute
the same bits. In plain loops LLVM chooses an order for each.

Rows are fp32 or bf16, of any number of numbers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .block_code import F32 as NUMBER
from .block_code import I64, ONE
from .tiles import ROW, Tile

_WIDE = ir.VectorType(NUMBER, ROW)


def dot_of(kind: int) -> Any:
    """The function `dot(row, columns, x)`: a tuple of one product, fp32.

    row: address of `[columns]` numbers of `kind`, F32 or BF16. x: of as many fp32. Neither need be aligned.
    """

    @intrinsic
    def dot(context: Any, row: Any, columns: Any, x: Any) -> Any:
        return _signature(1), _emit(kind)

    return dot


def four_dots_of(kind: int) -> Any:
    """The function `four_dots(row, columns, a, b, c, d)`: a tuple of the row's products with four vectors. Some of them
    may be the same. Arguments as for `dot_of`."""

    @intrinsic
    def four_dots(context: Any, row: Any, columns: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return _signature(4), _emit(kind)

    return four_dots


def _signature(vectors: int) -> Any:
    return types.UniTuple(types.float32, vectors)(*[types.int64] * (2 + vectors))


def _emit(kind: int) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile = Tile(context, builder, kind)
        row, columns, *vectors = args
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_WIDE, [0.0] * ROW)) for _ in vectors]
        whole = builder.and_(columns, ir.Constant(I64, -ROW))
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), whole, ir.Constant(I64, ROW)) as (i, _):
            numbers = tile.numbers(row, i, ROW)
            for x, total in zip(vectors, sums, strict=True):
                tile.add_product(total, numbers, tile.load(_WIDE, builder.add(x, tile.times(i, 4))))
        with cgutils.for_range_slice(builder, whole, columns, ir.Constant(I64, 1)) as (i, _):
            one = _alone(tile, tile.numbers(row, i, 1))
            for x, total in zip(vectors, sums, strict=True):
                tile.add_product(total, one, _alone(tile, tile.load(ONE, builder.add(x, tile.times(i, 4)))))
        return context.make_tuple(builder, signature.return_type, [_together(tile, total) for total in sums])

    return emit


def _alone(tile: Tile, number: Any) -> Any:
    """A number and zeros."""
    return tile.take(number, [0] + [1] * (ROW - 1))


def _together(tile: Tile, total: Any) -> Any:
    rest, half = tile.b.load(total), ROW // 2
    while half:
        rest = tile.b.fadd(tile.take(rest, [*range(half)]), tile.take(rest, [*range(half, 2 * half)]))
        half //= 2
    return tile.b.extract_element(rest, ir.Constant(ir.IntType(32), 0))
