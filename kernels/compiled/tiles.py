"""Products of rows with several query heads at once, and sums of rows weighted for several of them, as instructions on
vectors.

A row, of keys, values or bounds, is loaded and widened once for up to three heads, and stays in registers. Their sums
do, too: three heads by four rows, or by 16 numbers of an output, are what 16 registers hold. In plain loops the sums of
each product of two rows, taken across a register, cost as much as the product; here those of four rows are taken
together.

Rows have a multiple of 16 numbers, fp32 or bf16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .block_code import F32 as NUMBER
from .block_code import FLOATS, I64, Code
from .native import loop
from .record import BF16

ROWS = 4
"""Rows that `products_of` takes at once."""
ROW = 16
"""Numbers that a row has a multiple of."""
BLOCK = 32
"""Rows whose weights are kept at a time."""


class Tile(Code):
    """Instructions for rows of one kind."""

    def __init__(self, context: Any, builder: Any, kind: int) -> None:
        super().__init__(context, builder)
        self._kind = kind

    def times(self, number: Any, factor: int) -> Any:
        return self.b.mul(number, ir.Constant(I64, factor))

    def numbers(self, row: Any, first: Any, count: int) -> Any:
        """Some numbers of a row as fp32, from the one on whose place is `first`."""
        if self._kind != BF16:
            return self.load(ir.VectorType(NUMBER, count), self.b.add(row, self.times(first, 4)))
        halves, words = (ir.VectorType(ir.IntType(bits), count) for bits in (16, 32))
        word = self.b.zext(self.load(halves, self.b.add(row, self.times(first, 2))), words)
        return self.b.bitcast(self.b.shl(word, ir.Constant(words, [16] * count)), ir.VectorType(NUMBER, count))

    def eight(self, row: Any, first: Any) -> Any:
        """Eight of them."""
        return self.numbers(row, first, 8)

    def sum(self, start: Any = None) -> Any:
        """Eight sums, in registers."""
        return cgutils.alloca_once_value(self.b, ir.Constant(FLOATS, [0.0] * 8) if start is None else start)

    def add_product(self, total: Any, a: Any, b: Any) -> None:
        self.b.store(self.product_and(a, b, self.b.load(total)), total)

    def across(self, totals: list[Any]) -> Any:
        """The sums of four vectors of eight."""

        def both(a: Any, b: Any, low: list[int], high: list[int]) -> Any:
            return self.b.fadd(self.take(a, low, b), self.take(a, high, b))

        a, b, c, d = (self.b.load(total) for total in totals)
        low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
        halves = both(a, b, low, high), both(c, d, low, high)
        rest = both(halves[0], halves[1], [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        return self.b.fadd(self.take(rest, [0, 1, 2, 3]), self.take(rest, [4, 5, 6, 7]))


def products_of(kind: int) -> Any:
    """The function that multiplies heads with four rows of a kind."""
    one, two, three = (_products_of(kind, heads) for heads in (1, 2, 3))

    @loop
    def products(vectors: int, dim: int, heads: int, a: int, b: int, c: int, d: int, to: int, pitch: int) -> None:
        """Write the products of each of the heads' vectors, fp32 `[heads, dim]`, with the rows at `a`, `b`, `c`, `d` to
        `to`, those of the next head `pitch` bytes behind."""
        for h in range(0, heads, 3):
            of_h, to_h, left = vectors + 4 * h * dim, to + h * pitch, heads - h
            if left >= 3:
                three(of_h, dim, a, b, c, d, to_h, pitch)
            elif left == 2:
                two(of_h, dim, a, b, c, d, to_h, pitch)
            else:
                one(of_h, dim, a, b, c, d, to_h, pitch)

    return products


def _products_of(kind: int, heads: int) -> Any:
    @intrinsic
    def products(context: Any, q: Any, dim: Any, a: Any, b: Any, c: Any, d: Any, to: Any, pitch: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tile = Tile(context, builder, kind)
            q, dim, *rows, to, pitch = args
            sums = [[tile.sum() for _ in rows] for _ in range(heads)]
            with cgutils.for_range_slice(builder, ir.Constant(I64, 0), dim, ir.Constant(I64, 8)) as (i, _):
                of_heads = [
                    tile.load(FLOATS, builder.add(q, tile.times(builder.add(i, tile.times(dim, h)), 4)))
                    for h in range(heads)
                ]
                for t, row in enumerate(rows):
                    eight = tile.eight(row, i)
                    for h, of_head in enumerate(of_heads):
                        tile.add_product(sums[h][t], eight, of_head)
            for h in range(heads):
                tile.store(tile.across(sums[h]), builder.add(to, tile.times(pitch, h)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), emit

    return products


def weighted_of(kind: int) -> Any:
    """The function that adds up weighted rows of a kind."""
    one, two, three = (_weighted_of(kind, heads) for heads in (1, 2, 3))

    @loop
    def weighted(weights: int, shrink: int, heads: int, places: int, count: int, dim: int, out: int) -> None:
        """out = out * shrink + sum_t weights[t] rows[t] for each head.

        Args:
            weights: address of fp32 `[heads, BLOCK]`.
            shrink: of fp32 `[heads]`.
            places: of int64 `[count]`, the rows' addresses.
            out: of fp32 `[heads, dim]`.
        """
        for h in range(0, heads, 3):
            of_h, shrink_h, out_h, left = weights + 4 * h * BLOCK, shrink + 4 * h, out + 4 * h * dim, heads - h
            if left >= 3:
                three(of_h, shrink_h, places, count, dim, out_h)
            elif left == 2:
                two(of_h, shrink_h, places, count, dim, out_h)
            else:
                one(of_h, shrink_h, places, count, dim, out_h)

    return weighted


def _weighted_of(kind: int, heads: int) -> Any:
    @intrinsic
    def weighted(context: Any, weights: Any, shrink: Any, places: Any, count: Any, dim: Any, out: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tile = Tile(context, builder, kind)
            weights, shrink, places, count, dim, out = args

            def all_of(address: Any) -> Any:
                return tile.splat(tile.load(NUMBER, address), FLOATS)

            with cgutils.for_range_slice(builder, ir.Constant(I64, 0), dim, ir.Constant(I64, ROW)) as (i, _):
                parts = [(h, builder.add(i, ir.Constant(I64, part))) for h in range(heads) for part in range(0, ROW, 8)]
                at = [builder.add(out, tile.times(builder.add(first, tile.times(dim, h)), 4)) for h, first in parts]
                sums = [
                    tile.sum(builder.fmul(tile.load(FLOATS, place), all_of(tile.past(shrink, 4 * h))))
                    for (h, _), place in zip(parts, at, strict=True)
                ]
                with cgutils.for_range(builder, count) as loop:
                    t = loop.index
                    row = tile.load(I64, builder.add(places, tile.times(t, 8)))
                    of_heads = [
                        all_of(builder.add(tile.past(weights, 4 * BLOCK * h), tile.times(t, 4))) for h in range(heads)
                    ]
                    for part in range(ROW // 8):
                        eight = tile.eight(row, builder.add(i, ir.Constant(I64, 8 * part)))
                        for h, of_head in enumerate(of_heads):
                            tile.add_product(sums[h * (ROW // 8) + part], eight, of_head)
                for total, place in zip(sums, at, strict=True):
                    tile.store(builder.load(total), place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return weighted


@intrinsic
def highest(context: Any, numbers: Any) -> Any:
    """The largest of BLOCK fp32 numbers at an address. Of what is no number, any."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        rest = code.load(ir.VectorType(NUMBER, BLOCK), args[0])
        while (half := rest.type.count // 2) > 0:
            a, b = code.take(rest, [*range(half)]), code.take(rest, [*range(half, 2 * half)])
            rest = builder.select(builder.fcmp_ordered(">", a, b), a, b)
        return builder.extract_element(rest, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.int64), emit
