"""How the numbers, scales and minima of blocks are laid out, and the vector instructions that take them out.

The vectors are LLVM's own, of 16 or 32 bytes whatever the machine has: LLVM cuts them into what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .record import BLOCKS, I8, MXFP4, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

_I8, _I16, _I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
_BYTES, NUMBERS_16 = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16)
_WORDS, FLOATS = ir.VectorType(_I32, 8), ir.VectorType(F32, 8)
ONE, TWO = ir.VectorType(F32, 1), ir.VectorType(F32, 2)

BLOCK_NUMBERS = tuple(numbers for numbers, _ in BLOCKS.values())
BLOCK_BYTES = tuple(size for _, size in BLOCKS.values())
"""Of a block of each kind, as `record` counts them."""
ORDER = [*range(0, 32, 2), *range(1, 32, 2)]
"""Of each 32 numbers, as vectors of int16 have them: those at even places, then the others."""


class Code:
    """Vector instructions that several kinds need."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.b, self.context = builder, context

    def past(self, address: Any, offset: int) -> Any:
        return self.b.add(address, ir.Constant(I64, offset))

    def load(self, of: Any, address: Any) -> Any:
        return self.b.load(self.b.inttoptr(address, of.as_pointer()), align=1)

    def take(self, vector: Any, places: list[int], other: Any = None) -> Any:
        """The elements at these places; those of `other` follow those of `vector`."""
        other = ir.Constant(vector.type, None) if other is None else other
        return self.b.shuffle_vector(vector, other, ir.Constant(ir.VectorType(_I32, len(places)), places))

    def same(self, value: int, of: Any = _BYTES) -> Any:
        return ir.Constant(of, [value] * of.count)

    def splat(self, value: Any, of: Any) -> Any:
        return self.take(self.b.insert_element(ir.Constant(of, None), value, ir.Constant(_I32, 0)), [0] * of.count)

    def wide(self, vector: Any) -> Any:
        """Eight fp32, of which the last are 0."""
        return self.take(vector, [*range(vector.type.count), *[vector.type.count] * (8 - vector.type.count)])

    def spread(self, scale: Any) -> Any:
        """One number eight times, or two four times each."""
        count = scale.type.count
        return scale if count == 8 else self.take(scale, [0] * 4 + [count - 1] * 4)

    def product_and(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once if the machine can. LLVM's own choice of what to round once is not the same for one
        vector and for four."""
        of = ir.FunctionType(c.type, [c.type] * 3)
        name = f"llvm.fmuladd.v{c.type.count}f32"
        return self.b.call(cgutils.get_or_insert_function(self.b.module, of, name), [a, b, c])

    def widened(self, vector: Any) -> Any:
        """fp16, held as int16, to fp32. Without an instruction for it LLVM would call a function that is not there."""
        count = vector.type.count
        triple, _, features = self.context.codegen().magic_tuple()
        if "+f16c" in features or triple.startswith(("aarch64", "arm64")):
            return self.b.fpext(self.b.bitcast(vector, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))
        return widened_by_bits(self.b, vector)

    def half(self, address: Any) -> Any:
        """The fp16 at an address, eight times as fp32. Loaded once only, it would be put into a register that may still
        be waiting for a sum."""
        return self.widened(self.take(self.load(ir.VectorType(_I16, 1), address), [0] * 8))

    def two_halves(self, address: Any) -> Any:
        """Two fp16 at an address, as fp32."""
        return self.widened(self.load(ir.VectorType(_I16, 2), address))

    def store(self, vector: Any, address: Any) -> None:
        self.b.store(vector, self.b.inttoptr(address, vector.type.as_pointer()), align=4)

    def octets(self, address: Any) -> Any:
        return self.load(_BYTES, address)

    def low(self, octets: Any) -> Any:
        return self.b.and_(octets, self.same(15))

    def high(self, octets: Any) -> Any:
        return self.b.lshr(octets, self.same(4))

    def halves(self, address: Any) -> Any:
        """The lower halves of 16 bytes, then the upper ones: both by one shift that differs by element."""
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

    def words(self, octets: Any, *, are_signed: bool) -> list[Any]:
        """32 bytes as twice 16 int16, in ORDER."""
        pairs, eight = self.b.bitcast(octets, NUMBERS_16), self.same(8, NUMBERS_16)
        if are_signed:
            return [self.b.ashr(self.b.shl(pairs, eight), eight), self.b.ashr(pairs, eight)]
        return [self.b.and_(pairs, self.same(255, NUMBERS_16)), self.b.lshr(pairs, eight)]

    def floats(self, words: Any) -> list[Any]:
        """16 int16 as twice eight fp32."""
        parts = [self.take(words, [*range(begin, begin + 8)]) for begin in (0, 8)]
        return [self.b.sitofp(self.b.sext(part, _WORDS), FLOATS) for part in parts]

    def pair_products(self, a: Any, b: Any) -> Any:
        """The products of 16 int16 each, those of two neighbours added: eight int32."""
        _, _, features = self.context.codegen().magic_tuple()
        if "+avx2" in features:
            of = ir.FunctionType(_WORDS, [NUMBERS_16] * 2)
            return self.b.call(cgutils.get_or_insert_function(self.b.module, of, "llvm.x86.avx2.pmadd.wd"), [a, b])
        return added_pairs(self.b, a, b)


def added_pairs(builder: Any, a: Any, b: Any) -> Any:
    """`Code.pair_products` in instructions that every machine has."""
    wide = ir.VectorType(_I32, 16)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    none = ir.Constant(wide, None)
    even, odd = (
        builder.shuffle_vector(products, none, ir.Constant(_WORDS, [*range(first, 16, 2)])) for first in (0, 1)
    )
    return builder.add(even, odd)


def widened_by_bits(builder: Any, vector: Any) -> Any:
    """fp16, held as int16, to fp32, by arithmetic on the bits that every machine has. No subnormal number is met, with
    which some processors are a hundred times slower."""
    of = ir.VectorType(_I32, vector.type.count)
    number = ir.VectorType(F32, of.count)

    def all_of(value: int) -> Any:
        return ir.Constant(of, [value] * of.count)

    bits = builder.zext(vector, of)
    sign = builder.shl(builder.and_(bits, all_of(0x8000)), all_of(16))
    size = builder.shl(builder.and_(bits, all_of(0x7FFF)), all_of(13))
    above = builder.bitcast(builder.add(size, all_of(113 << 23)), number)
    subnormal = builder.bitcast(builder.fsub(above, ir.Constant(number, [2.0**-14] * of.count)), of)
    finite = builder.select(
        builder.icmp_unsigned("<", size, all_of(1 << 23)), subnormal, builder.add(size, all_of(112 << 23))
    )
    endless = builder.add(size, all_of(224 << 23))  # infinity and NaN
    bits = builder.select(builder.icmp_unsigned("<", size, all_of(31 << 23)), finite, endless)
    return builder.bitcast(builder.or_(bits, sign), number)


def _no_scale(code: Code, block: Any, room: Any) -> Any:
    return (lambda part: None), None


def _one_scale(code: Code, block: Any, room: Any) -> Any:
    scale = code.half(block)
    return (lambda part: scale), None


def _scale_and_minimum(code: Code, block: Any, room: Any) -> Any:
    both = code.two_halves(block)
    return (lambda part: code.take(both, [0])), code.wide(code.take(both, [1]))


def _of_6_bits(code: Code, block: Any, room: Any) -> Any:
    """Two fp16, and for each 32 numbers 6 bits to multiply either with: of the first four in the lower bits of bytes
    0-3 and 4-7, of the others in the halves of bytes 8-11 and the upper bits of 0-7."""
    b, both = code.b, code.two_halves(block)
    first, second, third = (code.load(_I32, code.past(block, 4 + 4 * i)) for i in range(3))

    def bits(word: Any, down: int, kept: int) -> Any:
        return b.and_(b.lshr(word, ir.Constant(_I32, down)), ir.Constant(_I32, kept))

    def eight(low: Any, high: Any) -> Any:
        words = ir.Constant(ir.VectorType(_I32, 2), None)
        for i, word in enumerate((low, high)):
            words = b.insert_element(words, word, ir.Constant(_I32, i))
        return b.uitofp(b.zext(b.bitcast(words, ir.VectorType(_I8, 8)), _WORDS), FLOATS)

    factors = eight(bits(first, 0, 0x3F3F3F3F), b.or_(bits(third, 0, 0x0F0F0F0F), bits(first, 2, 0x30303030)))
    minima = eight(bits(second, 0, 0x3F3F3F3F), b.or_(bits(third, 4, 0x0F0F0F0F), bits(second, 2, 0x30303030)))
    code.store(b.fmul(factors, code.take(both, [0] * 8)), room)
    return (
        lambda part: code.load(ONE, code.past(room, 4 * part)),
        b.fmul(minima, b.fneg(code.take(both, [1] * 8))),
    )


def _of_8_bits(code: Code, block: Any, room: Any) -> Any:
    """Behind the numbers: int8 for each 16 of them, and an fp16 to multiply those with."""
    scale = code.half(code.past(block, 208))
    for i in range(2):
        octets = code.load(ir.VectorType(_I8, 8), code.past(block, 192 + 8 * i))
        factors = code.b.sitofp(code.b.sext(octets, _WORDS), FLOATS)
        code.store(code.b.fmul(factors, scale), code.past(room, 32 * i))
    return (lambda part: code.load(TWO, code.past(room, 8 * part))), None


def _power_of_two(code: Code, block: Any, room: Any) -> Any:
    """A byte, of which 2 to the power of (it - 128) is made: numbers are twice what they stand for."""
    b, octet = code.b, code.take(code.load(ir.VectorType(_I8, 1), block), [0] * 8)
    power = b.zext(octet, _WORDS)
    normal = b.shl(b.sub(power, code.same(1, _WORDS)), code.same(23, _WORDS))
    small = b.shl(code.same(1 << 21, _WORDS), b.and_(power, code.same(1, _WORDS)))  # of 0 and 1
    bits = b.select(b.icmp_unsigned("<", power, code.same(2, _WORDS)), small, normal)
    scale = b.bitcast(bits, FLOATS)
    return (lambda part: scale), None


SCALES: dict[int, Callable[[Code, Any, Any], Any]] = {
    I8: _no_scale, Q8_0: _one_scale, Q4_0: _one_scale, Q4_1: _scale_and_minimum, Q5_0: _one_scale,
    Q5_1: _scale_and_minimum, Q4_K: _of_6_bits, Q5_K: _of_6_bits, Q6_K: _of_8_bits, MXFP4: _power_of_two,
}  # fmt: skip
"""Of each kind: the scale of each 32 numbers of the block at an address (one after the other, since they are read again
from memory), once or eight times, or both where each 16 have one, or None where there is none; and the minima, to be
multiplied with the sums of x, or None."""


def _i8(code: Code, block: Any) -> list[Any]:
    return [code.octets(block)]


def _q8_0(code: Code, block: Any) -> list[Any]:
    return [code.octets(code.past(block, 2))]


def _q4_0(code: Code, block: Any) -> list[Any]:
    return [code.b.sub(code.halves(code.past(block, 2)), code.same(8))]


def _q4_1(code: Code, block: Any) -> list[Any]:
    return [code.halves(code.past(block, 4))]


def _q5_0(code: Code, block: Any) -> list[Any]:
    below = code.b.select(code.bits(code.past(block, 2)), code.same(0), code.same(0xF0))  # -16 without the fifth bit
    return [code.b.or_(code.halves(code.past(block, 6)), below)]


def _q5_1(code: Code, block: Any) -> list[Any]:
    above = code.b.select(code.bits(code.past(block, 4)), code.same(16), code.same(0))
    return [code.b.or_(code.halves(code.past(block, 8)), above)]


def _fours(code: Code, address: Any, pairs: int) -> list[Any]:
    """Of each 32 bytes: the lower halves, then the upper ones."""
    octets = [code.octets(code.past(address, 32 * j)) for j in range(pairs)]
    return [part(pair) for pair in octets for part in (code.low, code.high)]


def _q4_k(code: Code, block: Any) -> list[Any]:
    return _fours(code, code.past(block, 16), 4)


def _q5_k(code: Code, block: Any) -> list[Any]:
    fifth = code.octets(code.past(block, 16))
    fours = _fours(code, code.past(block, 48), 4)
    return [code.b.or_(four, code.moved(fifth, 4 - j, 16)) for j, four in enumerate(fours)]


def _q6_k(code: Code, block: Any) -> list[Any]:
    parts = []
    for half in range(2):
        first, third, second, fourth = _fours(code, code.past(block, 64 * half), 2)
        upper = code.octets(code.past(block, 128 + 32 * half))
        for j, four in enumerate((first, second, third, fourth)):
            parts.append(code.b.sub(code.b.or_(four, code.moved(upper, 4 - 2 * j, 48)), code.same(32)))
    return parts


def _mxfp4(code: Code, block: Any) -> list[Any]:
    """Of 8 steps 0, 1, 2, 3, 4, 6, 8, 12, with a sign before them: a step, those that it is above the fourth again, and
    2 more for the last."""
    b, four = code.b, code.halves(code.past(block, 1))
    step = b.and_(four, code.same(7))
    above = b.select(b.icmp_unsigned(">", step, code.same(4)), b.sub(step, code.same(4)), code.same(0))
    last = b.select(b.icmp_unsigned("==", step, code.same(7)), code.same(2), code.same(0))
    size = b.add(b.add(step, above), last)
    return [b.select(b.icmp_unsigned(">", four, code.same(7)), b.sub(code.same(0), size), size)]


_NUMBERS: dict[int, Callable[[Code, Any], list[Any]]] = {
    I8: _i8, Q8_0: _q8_0, Q4_0: _q4_0, Q4_1: _q4_1, Q5_0: _q5_0, Q5_1: _q5_1, Q4_K: _q4_k, Q5_K: _q5_k, Q6_K: _q6_k,
    MXFP4: _mxfp4,
}  # fmt: skip
_SIGNED = (I8, Q8_0, Q4_0, Q5_0, Q6_K, MXFP4)


def numbers(kind: int, code: Code, block: Any) -> list[list[Any]]:
    """The numbers of the block at an address, for each 32 of them twice 16 int16 in ORDER."""
    return [code.words(octets, are_signed=kind in _SIGNED) for octets in _NUMBERS[kind](code, block)]
