"""How the numbers, scales and minima of GGUF blocks are laid out, and the vector instructions that take them out.

The vectors are LLVM's own, of 16 or 32 bytes whatever the machine has: LLVM cuts them into what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .record import Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0

_I8, _I16, _I32, I64, F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
_BYTES, _WORDS, FLOATS = ir.VectorType(_I8, 32), ir.VectorType(_I32, 8), ir.VectorType(F32, 8)
ONE, TWO = ir.VectorType(F32, 1), ir.VectorType(F32, 2)

BLOCK_NUMBERS = (0, 0, 0, 32, 32, 32, 32, 32, 256, 256, 256)
BLOCK_BYTES = (0, 0, 0, 34, 18, 20, 22, 24, 144, 176, 210)
"""Of a block of each kind, as `record` counts them."""
ORDER = [16 * half + 4 * i + k for k in range(4) for half in range(2) for i in range(4)]
_TOPS = [[j for at in ORDER[8 * k : 8 * k + 8] for j in (32, 32, 32, at)] for k in range(4)]
"""Of 32 bytes and a zero, those that make up eight int32: the bytes of a group at the top."""

WHOLE, HALVES, LOW, HIGH = range(4)
SHIFTS = {
    WHOLE: [24] * 32,
    HALVES: [8 * k % 24 + 4 * half for k in range(4) for half in range(2) for _ in range(4)],
    LOW: [8 * k for k in range(4) for _ in range(8)],
    HIGH: [(8 * k + 4) % 28 for k in range(4) for _ in range(8)],
}
"""How far up the numbers stand when they are cut out, of those in bytes of their own and those in the halves of bytes:
the lower halves of 16 bytes and then the upper ones, or all of 32 bytes."""


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

    def same(self, value: int) -> Any:
        return ir.Constant(_BYTES, [value] * 32)

    def splat(self, value: Any, of: Any) -> Any:
        return self.take(self.b.insert_element(ir.Constant(of, None), value, ir.Constant(_I32, 0)), [0] * of.count)

    def wide(self, vector: Any) -> Any:
        """Eight fp32, of which the last are 0."""
        return self.take(vector, [*range(vector.type.count), *[vector.type.count] * (8 - vector.type.count)])

    def product_and(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once if the machine can. LLVM's own choice of what to round once is not the same for one
        vector and for four."""
        of = ir.FunctionType(FLOATS, [FLOATS] * 3)
        return self.b.call(cgutils.get_or_insert_function(self.b.module, of, "llvm.fmuladd.v8f32"), [a, b, c])

    def widened(self, vector: Any) -> Any:
        """fp16, held as int16, to fp32. Without an instruction for it LLVM would call a function that is not there."""
        count = vector.type.count
        triple, _, features = self.context.codegen().magic_tuple()
        if "+f16c" in features or triple.startswith(("aarch64", "arm64")):
            return self.b.fpext(self.b.bitcast(vector, ir.VectorType(ir.HalfType(), count)), ir.VectorType(F32, count))
        return widened_by_bits(self.b, vector)

    def half(self, address: Any) -> Any:
        """The fp16 at an address, eight times as fp32."""
        return self.widened(self.take(self.load(ir.VectorType(_I16, 1), address), [0] * 8))

    def store(self, vector: Any, address: Any) -> None:
        self.b.store(vector, self.b.inttoptr(address, vector.type.as_pointer()), align=4)

    def whole(self, octets: Any) -> list[Any]:
        """Signed bytes to four times eight fp32."""
        words = [self.b.bitcast(self.take(octets, places), _WORDS) for places in _TOPS]
        return [self.b.sitofp(word, FLOATS) for word in words]

    def cut(self, words: Any, lowest: list[int], last: Any) -> list[Any]:
        """Four bits of each byte of eight int32 to four times eight fp32.

        Args:
            lowest: the bits of the lowest byte.
            last: int32 of the highest byte. Its upper half needs more than a mask: the topmost bit would be a sign.
        """
        masks = [ir.Constant(_WORDS, [bits << 8 * k for bits in lowest]) for k in range(3)]
        return [self.b.sitofp(word, FLOATS) for word in [*(self.b.and_(words, mask) for mask in masks), last]]

    def cut_halves(self, address: Any) -> list[Any]:
        """The same numbers as `halves`, cut out where they stand."""
        octets, lowest = self.load(ir.VectorType(_I8, 16), address), [0x0F] * 4 + [0xF0] * 4
        words = self.b.bitcast(self.take(octets, [*range(16)] * 2), _WORDS)
        down = self.b.lshr(words, ir.Constant(_WORDS, [24] * 8))
        return self.cut(words, lowest, self.b.and_(down, ir.Constant(_WORDS, lowest)))

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


def _one_scale(code: Code, block: Any, room: Any) -> Any:
    scale = code.half(block)
    return (lambda part: scale), None


def _scale_and_minimum(code: Code, block: Any, room: Any) -> Any:
    both = code.widened(code.load(ir.VectorType(_I16, 2), block))
    scale = code.take(both, [0] * 8)
    return (lambda part: scale), code.wide(both)


def _of_6_bits(code: Code, block: Any, room: Any) -> Any:
    """Two fp16, and for each 32 numbers 6 bits to multiply either with: of the first four in the lower bits of bytes
    0-3 and 4-7, of the others in the halves of bytes 8-11 and the upper bits of 0-7."""
    b, both = code.b, code.widened(code.load(ir.VectorType(_I16, 2), block))
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
        lambda part: code.splat(code.load(F32, code.past(room, 4 * part)), FLOATS),
        b.fmul(minima, b.fneg(code.take(both, [1] * 8))),
    )


def _of_8_bits(code: Code, block: Any, room: Any) -> Any:
    """Behind the numbers: int8 for each 16 of them, and an fp16 to multiply those with."""
    scale = code.half(code.past(block, 208))
    for i in range(2):
        octets = code.load(ir.VectorType(_I8, 8), code.past(block, 192 + 8 * i))
        factors = code.b.sitofp(code.b.sext(octets, _WORDS), FLOATS)
        code.store(code.b.fmul(factors, scale), code.past(room, 32 * i))
    return (lambda part: code.take(code.load(TWO, code.past(room, 8 * part)), [0] * 4 + [1] * 4)), None


SCALES: dict[int, Callable[[Code, Any, Any], Any]] = {
    Q8_0: _one_scale, Q4_0: _one_scale, Q4_1: _scale_and_minimum, Q5_0: _one_scale, Q5_1: _scale_and_minimum,
    Q4_K: _of_6_bits, Q5_K: _of_6_bits, Q6_K: _of_8_bits,
}  # fmt: skip
"""Of each kind: the scale of each 32 numbers of the block at an address, eight times (one after the other, since they
are read again from memory); and the minima, to be multiplied with what is kept of the sums of x, or None."""


def _q8_0(code: Code, block: Any) -> list[Any]:
    return [code.whole(code.load(_BYTES, code.past(block, 2)))]


def _q4_0(code: Code, block: Any) -> list[Any]:
    return [code.cut_halves(code.past(block, 2))]


def _q4_1(code: Code, block: Any) -> list[Any]:
    return [code.cut_halves(code.past(block, 4))]


def _q5_0(code: Code, block: Any) -> list[Any]:
    below = code.b.select(code.bits(code.past(block, 2)), code.same(0), code.same(0xF0))  # -16 without the fifth bit
    return [code.whole(code.b.or_(code.halves(code.past(block, 6)), below))]


def _q5_1(code: Code, block: Any) -> list[Any]:
    above = code.b.select(code.bits(code.past(block, 4)), code.same(16), code.same(0))
    return [code.whole(code.b.or_(code.halves(code.past(block, 8)), above))]


def _q4_k(code: Code, block: Any) -> list[Any]:
    parts = []
    for j in range(4):
        words = code.b.bitcast(code.load(_BYTES, code.past(block, 16 + 32 * j)), _WORDS)
        parts.append(code.cut(words, [0x0F] * 8, code.b.and_(words, ir.Constant(_WORDS, [0x0F << 24] * 8))))
        parts.append(code.cut(words, [0xF0] * 8, code.b.lshr(words, ir.Constant(_WORDS, [28] * 8))))
    return parts


def _q5_k(code: Code, block: Any) -> list[Any]:
    fifth = code.load(_BYTES, code.past(block, 16))
    pairs = [code.load(_BYTES, code.past(block, 48 + 32 * j)) for j in range(4)]
    fours = [part(pair) for pair in pairs for part in (code.low, code.high)]
    return [code.whole(code.b.or_(four, code.moved(fifth, 4 - j, 16))) for j, four in enumerate(fours)]


def _q6_k(code: Code, block: Any) -> list[Any]:
    parts = []
    for half in range(2):
        pairs = [code.load(_BYTES, code.past(block, 64 * half + 32 * j)) for j in range(2)]
        upper = code.load(_BYTES, code.past(block, 128 + 32 * half))
        for j, four in enumerate([part(pair) for part in (code.low, code.high) for pair in pairs]):
            six = code.b.or_(four, code.moved(upper, 4 - 2 * j, 48))
            parts.append(code.whole(code.b.sub(six, code.same(32))))
    return parts


NUMBERS: dict[int, Callable[[Code, Any], list[Any]]] = {
    Q8_0: _q8_0, Q4_0: _q4_0, Q4_1: _q4_1, Q5_0: _q5_0, Q5_1: _q5_1, Q4_K: _q4_k, Q5_K: _q5_k, Q6_K: _q6_k,
}  # fmt: skip
"""Of each kind: the numbers of the block at an address, in fp32, four times eight for each 32 of them."""
