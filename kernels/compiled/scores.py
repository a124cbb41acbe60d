"""Scores of an index's units for the query heads of one KV head, as powers of two that `choice` makes a softmax of.

    score       sum_d max(q_d lo_d, q_d hi_d)       or      q . anchor + sum_m table[m, code_m]
    kept        2 ^ (score / ln 2 - top), top the part's largest; top and the sum of the powers of each part

A power is taken once for each score: what other parts hold then costs one factor for each part and head. Powers are
never smaller than 2 ** -126, so no score is nothing, and whatever is no number counts as little as can be.

Query heads stand four side by side: a unit is read once for four, and a code fetches four numbers by one load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import float32, int32, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .block_code import F32 as NUMBER
from .block_code import I64, Code
from .native import LINE, as_float, as_int, fetch, floats, halves, longs, loop, real, widen
from .operation import operation
from .record import (
    BF16,
    F32,
    S_ANCHOR_PITCH,
    S_ANCHORS,
    S_BASIS,
    S_BOOKS,
    S_BOUNDS,
    S_CODE_DIM,
    S_CODE_PARTS,
    S_DIM,
    S_HEAD_PITCH,
    S_KIND,
    S_Q,
    S_REPEATS,
    S_ROOM,
    S_SCALE,
    S_SCORES,
    S_SEGMENT,
    S_SPAN,
    S_TABLES,
    S_TOPS,
    S_UNITS,
    WIDTH,
)
from .tiles import ROW, ROWS, products_of

_LOG2_E = 1.4426950408889634
_ROUNDER = float32(1.5 * 2**23)
"""What is added to it, up to 2 ** 22, is rounded to a whole number, which its last bits then hold."""
_TABLE = 4 * 256
"""Numbers of one part's table."""
_AHEAD = 16
"""Rows that are fetched before they are multiplied."""
_TURNED = 8
"""Tokens whose scores are turned together from four heads side by side to rows of heads."""


def score_bytes(repeats: int, dim: int, span: int, code_dim: int = 0) -> int:
    """Bytes that an operation of this file needs of a thread's own memory. With `code_dim` 0: of bounds."""
    heads = -(-repeats // 4) * 4
    if not code_dim:
        return 4 * heads * 2 * dim
    return 4 * (heads * dim + heads * max(span + 1, code_dim) + 4 * 256)


@njit(fastmath={"contract"}, error_model="numpy", nogil=True, forceinline=True)
def power(x: Any) -> Any:
    """2 to the power of x <= 0, fp32, to 2e-7; of less than -126, and of what is no number, 2 ** -126. LLVM vectorises
    it. Without leave to reorder, which would take the rounding away."""
    x = max(float32(-126), x)
    t = x + _ROUNDER
    r = x - (t - _ROUNDER)
    p = float32(0.00132647) * r + float32(0.00967151)
    p = p * r + float32(0.05550734)
    p = p * r + float32(0.24022242)
    p = p * r + float32(0.69314698)
    p = p * r + float32(1)
    return as_float(int32(as_int(p) + (as_int(t) << int32(23))))


_INFINITE = int32(0x7F800000)
_LEAST = int32(-0x80000000)


@loop
def _ordered(bits: Any) -> Any:
    """The bits of a number, or back: as whole numbers they are in the order of the numbers, which is what LLVM
    vectorises where a number may be none."""
    return int32(bits ^ ((bits >> int32(31)) & int32(0x7FFFFFFF)))


@loop
def _part(op: Any, item: int) -> Any:
    """Of an item: its KV head, its part, how many there are of each head, its first unit and its number of units."""
    span = op[S_SPAN]
    parts = (op[S_UNITS] + span - 1) // span
    first = item % parts * span
    return item // parts, item % parts, parts, first, min(span, op[S_UNITS] - first)


@loop
def _to_powers(op: Any, g: int, part: int, parts: int, first: int, count: int) -> None:
    """The scores of a part become powers, for each head; their maximum and the sum of the powers are left as well."""
    repeats = op[S_REPEATS]
    for h in range(g * repeats, g * repeats + repeats):
        row = floats(op[S_SCORES] + 4 * (h * op[S_ROOM] + first), (count,))
        left = floats(op[S_TOPS] + 8 * (h * parts + part), (2,))
        highest = _LEAST
        for n in range(count):
            bits = as_int(row[n])
            highest = max(highest, _ordered(bits) if bits <= _INFINITE else _LEAST)
        top: Any = as_float(_ordered(highest))
        mass = float32(0)
        for n in range(count):
            row[n] = power(row[n] - top)
            mass += row[n]
        left[0], left[1] = top, mass


@loop
def _queries(op: Any, g: int, to: int, columns: int) -> int:
    """The queries of KV head g at `to`, times the scale, [heads, D], fours of heads filled up with zeros; returns how
    many. With 2 D columns: what is positive of each, then what is negative."""
    repeats, dim = op[S_REPEATS], op[S_DIM]
    heads, scale = (repeats + 3) // 4 * 4, float32(real(op[S_SCALE]) * _LOG2_E)
    q = floats(op[S_Q] + 4 * g * repeats * dim, (repeats, dim))
    left = floats(to, (heads, columns))
    for h in range(heads):
        for j in range(dim):
            x = q[h, j] * scale if h < repeats else float32(0)
            if columns > dim:
                left[h, dim + j] = min(x, float32(0))
                x = max(x, float32(0))
            left[h, j] = x
    return heads


def _products_of(kind: int, number: Callable[[Any], Any], array: Callable[[Any, Any], Any]) -> Any:
    products_of_four = products_of(kind)

    @loop
    def products(rows: int, count: int, columns: int, vectors: int, heads: int, out: int, room: int) -> None:
        """out[h, n] = rows[n] . vectors[h], rows of `out` `room` numbers apart. `vectors` holds fours of heads."""
        if columns % ROW == 0 and count >= ROWS:
            size = columns * (4 if kind == F32 else 2)
            for n in range(0, count, ROWS):
                first = min(n, count - ROWS)  # some of the last four once more
                a, to = rows + first * size, out + 4 * first
                b, c, d = a + size, a + 2 * size, a + 3 * size
                # No processor foresees what comes next where four rows are read side by side.
                for at in range(a + _AHEAD * size, a + (_AHEAD + ROWS) * size, LINE):
                    fetch(at)
                products_of_four(vectors, columns, heads, a, b, c, d, to, 4 * room)
            return
        table, left = array(rows, (count, columns)), floats(out, (heads, room))
        for h in range(0, heads, 4):
            four = floats(vectors + 4 * h * columns, (4, columns))
            v0, v1, v2, v3 = four[0], four[1], four[2], four[3]
            for n in range(count):
                row = table[n]
                s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
                for j in range(columns):
                    x = number(row[j])
                    s0 += x * v0[j]
                    s1 += x * v1[j]
                    s2 += x * v2[j]
                    s3 += x * v3[j]
                left[h, n] = s0
                if h + 1 < heads:
                    left[h + 1, n] = s1
                if h + 2 < heads:
                    left[h + 2, n] = s2
                if h + 3 < heads:
                    left[h + 3, n] = s3

    return products


@loop
def _same(x: Any) -> Any:
    return x


_of_floats = _products_of(F32, _same, floats)
_of_halves = _products_of(BF16, widen, halves)


@operation
def score_bounds(row: int, item: int, scratch: int) -> None:
    """Scores of a part's units by the largest and the smallest keys: max(q, 0) . hi + min(q, 0) . lo."""
    op = longs(row, WIDTH)
    g, part, parts, first, count = _part(op, item)
    repeats, columns = op[S_REPEATS], 2 * op[S_DIM]
    _queries(op, g, scratch, columns)
    at = g * op[S_HEAD_PITCH] + first * columns
    scores = op[S_SCORES] + 4 * (g * repeats * op[S_ROOM] + first)
    if op[S_KIND] == BF16:
        _of_halves(op[S_BOUNDS] + 2 * at, count, columns, scratch, repeats, scores, op[S_ROOM])
    else:
        _of_floats(op[S_BOUNDS] + 4 * at, count, columns, scratch, repeats, scores, op[S_ROOM])
    _to_powers(op, g, part, parts, first, count)


@operation
def make_tables(row: int, item: int, scratch: int) -> None:
    """The scores of one part of a KV head's queries with the centroids of that part."""
    op = longs(row, WIDTH)
    parts, width, dim = op[S_CODE_PARTS], op[S_CODE_DIM], op[S_DIM]
    g, m = item // parts, item % parts
    heads = _queries(op, g, scratch, op[S_DIM])
    coefficients, sums = scratch + 4 * heads * dim, scratch + 4 * heads * (dim + width)
    basis = op[S_BASIS] + 4 * (g * parts + m) * width * dim
    _of_floats(basis, width, dim, scratch, heads, coefficients, width)
    q, four = floats(coefficients, (heads, width)), floats(sums, (4, 256))
    book = floats(op[S_BOOKS] + 4 * item * width * 256, (width, 256))
    for h in range(0, heads, 4):
        for r in range(4):
            sums_of_head = four[r]
            sums_of_head[:] = 0
            for w in range(width):
                x, centroids = q[h + r, w], book[w]
                for c in range(256):
                    sums_of_head[c] += x * centroids[c]
        table = floats(op[S_TABLES] + 4 * _TABLE * ((g * heads + h) // 4 * parts + m), (256, 4))
        for c in range(256):
            for r in range(4):
                table[c, r] = four[r, c]


_FOUR, _BYTE = ir.VectorType(NUMBER, 4), ir.IntType(8)


class _Tokens(Code):
    """Instructions that score tokens one behind another by their codes, for four heads: a row of a table is one load,
    which LLVM does not see by itself."""

    def __init__(self, context: Any, builder: Any, codes: Any, tables: Any, start: Any, tokens: int) -> None:
        super().__init__(context, builder)
        self._codes, self._tables = codes, tables
        self._sums = [cgutils.alloca_once_value(builder, start) for _ in range(tokens)]

    def add(self, token: int, row: Any) -> None:
        """Add four numbers of a table, at an address."""
        total = self._sums[token]
        self.b.store(self.b.fadd(self.b.load(total), self.load(_FOUR, row)), total)

    def any_parts(self, parts: Any) -> None:
        """Look up the codes of all tokens, which have `parts` each."""
        begins = [self.b.add(self._codes, self.b.mul(parts, ir.Constant(I64, n))) for n in range(len(self._sums))]
        with cgutils.for_range(self.b, parts) as loop:
            table = self.b.add(self._tables, self.b.mul(loop.index, ir.Constant(I64, 4 * _TABLE)))
            for token, begin in enumerate(begins):
                code = self.b.zext(self.load(_BYTE, self.b.add(begin, loop.index)), I64)
                self.add(token, self.b.add(table, self.b.shl(code, ir.Constant(I64, 4))))

    def six_parts(self) -> None:
        """As `any_parts`, for tokens of as many codes as are the default. They are taken out of four bytes and of two:
        a load for each would take as long as the look-ups."""
        for token in range(len(self._sums)):
            begin = self.past(self._codes, 6 * token)
            for first, size in ((0, 4), (4, 2)):
                codes = self.b.zext(self.load(ir.IntType(8 * size), self.past(begin, first)), I64)
                for k in range(size):
                    by = ir.Constant(I64, abs(8 * k - 4))
                    moved = self.b.lshr(codes, by) if k else self.b.shl(codes, by)
                    row = self.b.and_(moved, ir.Constant(I64, 0xFF0))
                    self.add(token, self.b.add(self.past(self._tables, 4 * _TABLE * (first + k)), row))

    def leave(self, to: Any, pitch: Any, heads: Any) -> None:
        """Write the sums of each head, token by token, to its row. They are turned in registers."""
        rows = [self.b.load(total) for total in self._sums]
        tokens = len(rows)
        while len(rows) > 1:
            rows = [self.take(a, [*range(2 * a.type.count)], b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        last = self.b.sub(heads, ir.Constant(I64, 1))
        for r in (3, 2, 1, 0):  # the last head comes after those that do not count, and stays
            number = ir.Constant(I64, r)
            row = self.b.select(self.b.icmp_signed("<", number, last), number, last)
            self.store(self.take(rows[0], [4 * k + r for k in range(tokens)]), self.b.add(to, self.b.mul(pitch, row)))


def _scores_of(tokens: int) -> Any:
    @intrinsic
    def scores(context: Any, codes: Any, parts: Any, tables: Any, start: Any, to: Any, pitch: Any, heads: Any) -> Any:
        """Scores of some tokens by their codes, for `heads` heads, up to four, whose rows of scores are `pitch` bytes
        apart. At `start` is what is added to those of each head: four numbers."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            codes, parts, tables, start, to, pitch, heads = args
            first = builder.load(builder.inttoptr(start, _FOUR.as_pointer()), align=4)
            are_six = builder.icmp_signed("==", parts, ir.Constant(I64, 6))
            made = _Tokens(context, builder, codes, tables, first, tokens)
            with builder.if_else(are_six) as (six, other):
                with six:
                    made.six_parts()
                with other:
                    made.any_parts(parts)
            made.leave(to, pitch, heads)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return scores


_scores_of_eight, _scores_of_one = _scores_of(_TURNED), _scores_of(1)


@operation
def score_codes(row: int, item: int, scratch: int) -> None:
    """Scores of a part's tokens by the tables that `make_tables` left, and by their segments' anchors."""
    op = longs(row, WIDTH)
    g, part, parts, first, count = _part(op, item)
    repeats, dim, codes_each = op[S_REPEATS], op[S_DIM], op[S_CODE_PARTS]
    segment, end, pitch = op[S_SEGMENT], first + count, 4 * op[S_ROOM]
    heads = _queries(op, g, scratch, dim)
    start = first // segment
    segments = (end - 1) // segment + 1 - start
    at_anchors = scratch + 4 * heads * dim
    anchors = op[S_ANCHORS] + 2 * (g * op[S_ANCHOR_PITCH] + start * dim)
    _of_halves(anchors, segments, dim, scratch, heads, at_anchors, segments)
    of_anchors, of_four = floats(at_anchors, (heads, segments)), at_anchors + 4 * heads * segments
    four = floats(of_four, (4,))
    for h in range(0, repeats, 4):
        tables = op[S_TABLES] + 4 * _TABLE * ((g * heads + h) // 4 * codes_each)
        scores = op[S_SCORES] + (g * repeats + h) * pitch
        codes = op[S_BOUNDS] + g * op[S_HEAD_PITCH]
        for s in range(segments):
            for r in range(4):
                four[r] = of_anchors[h + r, s]
            low, high = max(first, (start + s) * segment), min(end, (start + s + 1) * segment)
            for n in range(low, high, _TURNED):
                if high - low >= _TURNED:
                    at = min(n, high - _TURNED)  # some of the last eight once more
                    _scores_of_eight(
                        codes + at * codes_each, codes_each, tables, of_four, scores + 4 * at, pitch, repeats - h
                    )
                else:
                    for at in range(n, high):
                        _scores_of_one(
                            codes + at * codes_each, codes_each, tables, of_four, scores + 4 * at, pitch, repeats - h
                        )
    _to_powers(op, g, part, parts, first, count)
