"""Sums over the numbers of GGUF blocks, as instructions on vectors: what plain loops are too slow for.

A block's numbers are taken 32 at a time. In four steps, eight of them are cut out of eight int32, become fp32, and are
multiplied with x. They are cut out where they stand, since a shift more is an instruction more: a number comes out some
power of two too large, and x is made smaller by it beforehand (`arrange`). x is fp32 all the way: rounding it to 16 bits
moves the logits of a small model by 1e-2, and is no faster in two parts of 16 bits.

The vectors are LLVM's own, of 16 or 32 bytes whatever the machine has: LLVM cuts them into what there is.

    order of x    Number 8 k + i of each 32 is x[4 i + k], 8 k + 4 + i is x[16 + 4 i + k], for k and i below four: the
                  kth bytes of eight int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from .record import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _FLOATS = ir.VectorType(_I8, 32), ir.VectorType(_I32, 8), ir.VectorType(_F32, 8)

BLOCK_NUMBERS = (0, 0, 0, 32, 32, 32, 32, 32, 256, 256, 256)
BLOCK_BYTES = (0, 0, 0, 34, 18, 20, 22, 24, 144, 176, 210)
"""Of a block of each kind."""
_ORDER = [16 * half + 4 * i + k for k in range(4) for half in range(2) for i in range(4)]
_TOPS = [[j for at in _ORDER[8 * k : 8 * k + 8] for j in (32, 32, 32, at)] for k in range(4)]
"""Of 32 bytes and a zero, those that make up eight int32: the bytes of a group at the top."""

WHOLE, HALVES, LOW, HIGH = range(4)
_SHIFTS = {
    WHOLE: [24] * 32,
    HALVES: [8 * k % 24 + 4 * half for k in range(4) for half in range(2) for _ in range(4)],
    LOW: [8 * k for k in range(4) for _ in range(8)],
    HIGH: [(8 * k + 4) % 28 for k in range(4) for _ in range(8)],
}
"""How far up the numbers stand when they are cut out, of those in bytes of their own and those in the halves of bytes:
the lower halves of 16 bytes and then the upper ones, or all of 32 bytes."""


class Sums(types.Type):  # type: ignore[misc]
    """Eight sums for each of some vectors x, over the blocks of a row of one kind. They live in registers."""

    def __init__(self, kind: int, vectors: int) -> None:
        self.kind, self.vectors = kind, vectors
        super().__init__(name=f"Sums({kind}, {vectors})")


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of: Sums) -> None:
        super().__init__(manager, of, ir.ArrayType(_FLOATS, of.vectors))


@intrinsic(prefer_literal=True)
def no_sums(context: Any, kind: Any, vectors: Any) -> Any:
    """The sums over no blocks; both arguments are constants."""
    if not isinstance(kind, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    of = Sums(kind.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.ArrayType(_FLOATS, of.vectors), None)

    return of(kind, vectors), emit


@intrinsic
def with_block(context: Any, sums: Any, block: Any, scales: Any, x: Any, pitch: Any, ahead: Any) -> Any:
    """The sums with one more block: scale * (numbers . x).

    Args:
        block, scales, x: addresses: of the block in the file, of the scales of its parts, and of its numbers of the
            first vector x.
        pitch: bytes from one vector x to the next.
        ahead: bytes from here to what will be wanted some rows later.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(builder)
        state, block, scales, x, pitch, ahead = args
        for line in range(0, BLOCK_BYTES[sums.kind], 64):
            code.prefetch(code.past(builder.add(block, ahead), line))
        vectors = [builder.add(x, builder.mul(pitch, ir.Constant(_I64, v))) for v in range(sums.vectors)]
        totals = [builder.extract_value(state, v) for v in range(sums.vectors)]
        step, scale_of = (8, code.two_scales) if sums.kind == Q6_K else (4, code.one_scale)
        for part, numbers in enumerate(_NUMBERS[sums.kind](code, block)):
            scale = scale_of(code.past(scales, step * part))
            for v, vector in enumerate(vectors):
                of_x = [code.load(_FLOATS, code.past(vector, 128 * part + 32 * k)) for k in range(4)]
                total = builder.fmul(numbers[0], of_x[0])
                for k in range(1, 4):
                    total = code.product_and(numbers[k], of_x[k], total)
                totals[v] = code.product_and(total, scale, totals[v])
        return code.array(state, totals)

    return sums(sums, *[types.int64] * 5), emit


@intrinsic(prefer_literal=True)
def with_minima(context: Any, sums: Any, count: Any, minima: Any, of_x: Any, pitch: Any) -> Any:
    """The sums with some more minima * (sums of x).

    Args:
        count: a constant: how many, no more than 8.
        minima, of_x: addresses: of the minima, and of the first vector's sums of 32 numbers.
        pitch: bytes from one vector's sums to the next.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    of = ir.VectorType(_F32, count.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(builder)
        state, _, minima, of_x, pitch = args
        taken, totals = code.wide(code.load(of, minima)), []
        for v in range(sums.vectors):
            vector = builder.add(of_x, builder.mul(pitch, ir.Constant(_I64, v)))
            totals.append(code.product_and(taken, code.wide(code.load(of, vector)), builder.extract_value(state, v)))
        return code.array(state, totals)

    return sums(sums, count, types.int64, types.int64, types.int64), emit


@intrinsic
def leave(context: Any, sums: Any, address: Any, pitch: Any, count: Any) -> Any:
    """Write the sum of the eight of the first `count` vectors x, fp32, to addresses `pitch` bytes apart."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = _Code(builder)
        state, address, pitch, count = args
        for v in range(sums.vectors):
            total = builder.extract_value(state, v)
            for half in (4, 2, 1):
                total = builder.fadd(code.take(total, [*range(half)]), code.take(total, [*range(half, 2 * half)]))
            to = builder.inttoptr(builder.add(address, builder.mul(pitch, ir.Constant(_I64, v))), _F32.as_pointer())
            with builder.if_then(builder.icmp_signed(">", count, ir.Constant(_I64, v)), likely=True):
                builder.store(builder.extract_element(total, ir.Constant(_I32, 0)), to)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def arrange(context: Any, form: Any, x: Any, out: Any) -> Any:
    """Write 32 numbers of x, fp32, to `out` in the order of sums, each divided by what its partner is too large by.

    Args:
        form: a constant: how the partners stand.
    """
    if not isinstance(form, types.IntegerLiteral):
        return None
    factors = [2.0**-shift for shift in _SHIFTS[form.literal_value]]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, of = _Code(builder), ir.VectorType(_F32, 32)
        ordered = code.take(code.load(of, args[1]), _ORDER)
        to = builder.inttoptr(args[2], of.as_pointer())
        builder.store(builder.fmul(ordered, ir.Constant(of, factors)), to, align=4)
        return context.get_dummy_value()

    return types.void(form, types.int64, types.int64), emit


class _Code:
    """Vector instructions that several kinds need."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def past(self, address: Any, offset: int) -> Any:
        return self.b.add(address, ir.Constant(_I64, offset))

    def load(self, of: Any, address: Any) -> Any:
        return self.b.load(self.b.inttoptr(address, of.as_pointer()), align=1)

    def take(self, vector: Any, places: list[int], other: Any = None) -> Any:
        """The elements at these places; those of `other` follow those of `vector`."""
        other = ir.Constant(vector.type, None) if other is None else other
        return self.b.shuffle_vector(vector, other, ir.Constant(ir.VectorType(_I32, len(places)), places))

    def same(self, value: int) -> Any:
        return ir.Constant(_BYTES, [value] * 32)

    def splat(self, value: Any, of: Any) -> Any:
        return self.take(self.b.insert_element(ir.Constant(of, None), value, ir.Constant(_I32, 0)), [0] * of.count)

    def wide(self, vector: Any) -> Any:
        """Eight fp32, of which the last are 0."""
        return self.take(vector, [*range(vector.type.count), *[vector.type.count] * (8 - vector.type.count)])

    def product_and(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once where the machine can. Left to LLVM, it were different for one vector and four."""
        of = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return self.b.call(cgutils.get_or_insert_function(self.b.module, of, "llvm.fmuladd.v8f32"), [a, b, c])

    def prefetch(self, address: Any) -> None:
        of = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(self.b.module, of, "llvm.prefetch.p0")
        read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
        self.b.call(function, [self.b.inttoptr(address, _I8.as_pointer()), read, keep, data])

    def array(self, state: Any, totals: list[Any]) -> Any:
        for v, total in enumerate(totals):
            state = self.b.insert_value(state, total, v)
        return state

    def whole(self, octets: Any) -> list[Any]:
        """Signed bytes to four times eight fp32."""
        words = [self.b.bitcast(self.take(octets, places), _WORDS) for places in _TOPS]
        return [self.b.sitofp(word, _FLOATS) for word in words]

    def cut(self, words: Any, lowest: list[int], last: Any) -> list[Any]:
        """Four bits of each byte of eight int32 to four times eight fp32; `lowest` are those of the lowest byte, `last`
        the int32 of the highest, which may need more than a mask: the topmost bit is a sign."""
        masks = [ir.Constant(_WORDS, [bits << 8 * k for bits in lowest]) for k in range(3)]
        return [self.b.sitofp(word, _FLOATS) for word in [*(self.b.and_(words, mask) for mask in masks), last]]

    def halves(self, address: Any) -> list[Any]:
        """16 bytes: the lower halves, then the upper ones."""
        octets, lowest = self.load(ir.VectorType(_I8, 16), address), [0x0F] * 4 + [0xF0] * 4
        words = self.b.bitcast(self.take(octets, [*range(16)] * 2), _WORDS)
        down = self.b.lshr(words, ir.Constant(_WORDS, [24] * 8))
        return self.cut(words, lowest, self.b.and_(down, ir.Constant(_WORDS, lowest)))

    def one_scale(self, address: Any) -> Any:
        return self.splat(self.load(_F32, address), _FLOATS)

    def two_scales(self, address: Any) -> Any:
        """Of the first 16 numbers and of the others: each eight numbers have four of both."""
        return self.take(self.load(ir.VectorType(_F32, 2), address), [0] * 4 + [1] * 4)

    def low(self, octets: Any) -> Any:
        return self.b.and_(octets, self.same(15))

    def high(self, octets: Any) -> Any:
        return self.b.lshr(octets, self.same(4))

    def nibbles(self, address: Any) -> Any:
        """16 bytes: the low halves, then the high ones. Both at once, by a shift that differs by element."""
        twice = self.b.bitcast(self.take(self.load(ir.VectorType(_I8, 16), address), [*range(16)] * 2), _WORDS)
        shifted = self.b.lshr(twice, ir.Constant(_WORDS, [0] * 4 + [4] * 4))
        return self.low(self.b.bitcast(shifted, _BYTES))

    def bits(self, address: Any) -> Any:
        """32 bits, each as a truth value."""
        words = self.splat(self.load(_I32, address), _WORDS)
        octets = self.take(self.b.bitcast(words, _BYTES), [i // 8 for i in range(32)])
        picked = self.b.and_(octets, ir.Constant(_BYTES, [1 << i % 8 for i in range(32)]))
        return self.b.icmp_unsigned("!=", picked, self.same(0))

    def moved(self, octets: Any, places: int, kept: int) -> Any:
        """Bytes shifted to the left, or with places < 0 to the right, and the bits of `kept` of them."""
        by = self.same(abs(places))
        return self.b.and_(self.b.shl(octets, by) if places > 0 else self.b.lshr(octets, by), self.same(kept))


def _q8_0(code: _Code, block: Any) -> list[Any]:
    return [code.whole(code.load(_BYTES, code.past(block, 2)))]


def _q4_0(code: _Code, block: Any) -> list[Any]:
    return [code.halves(code.past(block, 2))]


def _q4_1(code: _Code, block: Any) -> list[Any]:
    return [code.halves(code.past(block, 4))]


def _q5_0(code: _Code, block: Any) -> list[Any]:
    below = code.b.select(code.bits(code.past(block, 2)), code.same(0), code.same(0xF0))  # -16 without the fifth bit
    return [code.whole(code.b.or_(code.nibbles(code.past(block, 6)), below))]


def _q5_1(code: _Code, block: Any) -> list[Any]:
    above = code.b.select(code.bits(code.past(block, 4)), code.same(16), code.same(0))
    return [code.whole(code.b.or_(code.nibbles(code.past(block, 8)), above))]


def _q4_k(code: _Code, block: Any) -> list[Any]:
    parts = []
    for j in range(4):
        words = code.b.bitcast(code.load(_BYTES, code.past(block, 16 + 32 * j)), _WORDS)
        parts.append(code.cut(words, [0x0F] * 8, code.b.and_(words, ir.Constant(_WORDS, [0x0F << 24] * 8))))
        parts.append(code.cut(words, [0xF0] * 8, code.b.lshr(words, ir.Constant(_WORDS, [28] * 8))))
    return parts


def _q5_k(code: _Code, block: Any) -> list[Any]:
    fifth = code.load(_BYTES, code.past(block, 16))
    pairs = [code.load(_BYTES, code.past(block, 48 + 32 * j)) for j in range(4)]
    fours = [part(pair) for pair in pairs for part in (code.low, code.high)]
    return [code.whole(code.b.or_(four, code.moved(fifth, 4 - j, 16))) for j, four in enumerate(fours)]


def _q6_k(code: _Code, block: Any) -> list[Any]:
    parts = []
    for half in range(2):
        pairs = [code.load(_BYTES, code.past(block, 64 * half + 32 * j)) for j in range(2)]
        upper = code.load(_BYTES, code.past(block, 128 + 32 * half))
        for j, four in enumerate([part(pair) for part in (code.low, code.high) for pair in pairs]):
            six = code.b.or_(four, code.moved(upper, 4 - 2 * j, 48))
            parts.append(code.whole(code.b.sub(six, code.same(32))))
    return parts


_NUMBERS: dict[int, Callable[[_Code, Any], list[Any]]] = {
    Q8_0: _q8_0, Q4_0: _q4_0, Q4_1: _q4_1, Q5_0: _q5_0, Q5_1: _q5_1, Q4_K: _q4_k, Q5_K: _q5_k, Q6_K: _q6_k,
}  # fmt: skip
"""Of each kind: the numbers of the block at an address, in fp32, four times eight for each 32 of them."""
