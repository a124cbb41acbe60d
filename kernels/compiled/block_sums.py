"""Sums over the numbers of blocks, as instructions on vectors: what plain loops are too slow for.

A block's numbers are taken 32 at a time. They become int16, and then there are two ways:

    exact      they become fp32, and are multiplied with x as it is
    rounded    they are multiplied with 32 numbers of x rounded to 16 bits of the largest of them; products of
               integers are added exactly, and their sum is multiplied with both scales: half the instructions
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from .block_code import BLOCK_NUMBERS, F32, FLOATS, I64, NUMBERS_16, ONE, ORDER, SCALES, Code, numbers
from .record import Q4_1, Q4_K, Q5_1, Q5_K

_X = ir.VectorType(F32, 32)
_WITH_MINIMA = (Q4_1, Q5_1, Q4_K, Q5_K)


class Sums(types.Type):  # type: ignore[misc]
    """Eight sums for each of some vectors x, over the blocks of a row of one kind, and if the kind has minima, eight
    more of those. They live in registers."""

    def __init__(self, kind: int, vectors: int, *, rounded: bool) -> None:
        self.kind, self.vectors, self.rounded = kind, vectors, rounded
        self.registers = ir.ArrayType(FLOATS, 2 * vectors if kind in _WITH_MINIMA else vectors)
        super().__init__(name=f"Sums({kind}, {vectors}, {rounded})")


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of: Sums) -> None:
        super().__init__(manager, of, of.registers)


@intrinsic(prefer_literal=True)
def no_sums(context: Any, kind: Any, vectors: Any, rounded: Any) -> Any:
    """The sums over no blocks; all arguments are constants."""
    if not all(isinstance(argument, types.IntegerLiteral) for argument in (kind, vectors, rounded)):
        return None
    of = Sums(kind.literal_value, vectors.literal_value, rounded=bool(rounded.literal_value))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(of.registers, None)

    return of(kind, vectors, rounded), emit


@intrinsic
def with_block(context: Any, sums: Any, block: Any, x: Any, x_scales: Any, x_sums: Any, pitch: Any, room: Any) -> Any:
    """The sums with one more block: scale * (numbers . x) + minimum * (sum of x).

    Args:
        block: address of the block.
        x, x_scales, x_sums: addresses of its numbers of the first vector x, and of what belongs to each 32 of them, as
            `blocks.prepare` leaves them.
        pitch: bytes from one vector's to the next one's.
        room: address of 64 bytes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        state, block, *addresses, pitch, room = args
        count, times = sums.vectors, [builder.mul(pitch, ir.Constant(I64, v)) for v in range(sums.vectors)]
        vectors, vector_scales, vector_sums = ([builder.add(first, t) for t in times] for first in addresses)
        registers = [builder.extract_value(state, i) for i in range(sums.registers.count)]
        scales, minima = SCALES[sums.kind](code, block, room)
        for part, words in enumerate(numbers(sums.kind, code, block)):
            scale = scales(part)
            for v in range(count):
                of_x = code.past(vectors[v], 32 * part * (2 if sums.rounded else 4))
                if sums.rounded:
                    x_scale = code.load(ONE, code.past(vector_scales[v], 4 * part))
                    registers[v] = _with_rounded(code, words, of_x, _both(code, scale, x_scale), registers[v])
                else:
                    registers[v] = _with_exact(code, words, of_x, scale, registers[v])
        if minima is not None:
            for v, of_vector in enumerate(vector_sums):
                of_x = code.wide(code.load(FLOATS if BLOCK_NUMBERS[sums.kind] == 256 else ONE, of_vector))
                registers[count + v] = code.product_and(minima, of_x, registers[count + v])
        for i, register in enumerate(registers):
            state = builder.insert_value(state, register, i)
        return state

    return sums(sums, *[types.int64] * 6), emit


def _with_rounded(code: Code, words: list[Any], x: Any, scale: Any, total: Any) -> Any:
    """The sums with 32 int16 times as many at an address. Those of numbers of a byte stay below 2^25."""
    even, odd = (code.pair_products(some, code.load(NUMBERS_16, code.past(x, 32 * i))) for i, some in enumerate(words))
    # Of the eight sums, the first four are of the first 16 numbers, the last four of the last.
    return code.product_and(code.b.sitofp(code.b.add(even, odd), FLOATS), code.spread(scale), total)


def _both(code: Code, scale: Any, x_scale: Any) -> Any:
    if scale is None:
        return x_scale
    return code.b.fmul(scale, code.take(x_scale, [0] * scale.type.count))


def _with_exact(code: Code, words: list[Any], x: Any, scale: Any, total: Any) -> Any:
    """The sums with 32 int16 times as many fp32 at an address."""
    eights = [eight for some in words for eight in code.floats(some)]
    of_x = [code.load(FLOATS, code.past(x, 32 * k)) for k in range(4)]
    for half in range(2):  # the first and the last 16, which may have a scale each
        of_half = code.product_and(eights[2 + half], of_x[2 + half], code.b.fmul(eights[half], of_x[half]))
        if scale is None:
            total = code.b.fadd(total, of_half)
        else:
            spread = code.spread(scale)
            total = code.product_and(of_half, code.take(spread, [4 * half] * 8), total)
    return total


@intrinsic
def leave(context: Any, sums: Any, address: Any, pitch: Any, count: Any) -> Any:
    """Write the sum of the eight of the first `count` vectors x, fp32, to addresses `pitch` bytes apart."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        state, address, pitch, count = args
        for v in range(sums.vectors):
            total = builder.extract_value(state, v)
            if sums.kind in _WITH_MINIMA:
                total = builder.fadd(total, builder.extract_value(state, sums.vectors + v))
            for half in (4, 2, 1):
                total = builder.fadd(code.take(total, [*range(half)]), code.take(total, [*range(half, 2 * half)]))
            to = builder.inttoptr(builder.add(address, builder.mul(pitch, ir.Constant(I64, v))), F32.as_pointer())
            with builder.if_then(builder.icmp_signed(">", count, ir.Constant(I64, v)), likely=True):
                builder.store(builder.extract_element(total, ir.Constant(ir.IntType(32), 0)), to)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64, types.int64), emit


@intrinsic
def leave_exact(context: Any, x: Any, to: Any) -> Any:
    """Write 32 numbers, fp32, to an address as exact sums want them."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        code.store(code.take(code.load(_X, args[0]), ORDER), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def leave_rounded(context: Any, x: Any, step: Any, to: Any) -> Any:
    """Write 32 numbers, fp32, to an address as rounded sums want them: whole steps, int16. None where a step is 0 or
    no number."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, b = Code(context, builder), builder
        one = ir.Constant(F32, 1.0)
        has_steps = b.fcmp_ordered(">", args[1], ir.Constant(F32, 0.0))
        inverse = b.fdiv(one, b.select(has_steps, args[1], one))
        given = code.load(_X, args[0])
        given = b.select(code.splat(has_steps, ir.VectorType(ir.IntType(1), 32)), given, ir.Constant(_X, None))
        of = ir.FunctionType(_X, [_X])
        nearest = cgutils.get_or_insert_function(b.module, of, "llvm.rint.v32f32")
        steps = b.call(nearest, [b.fmul(given, code.splat(inverse, _X))])
        whole = b.trunc(b.fptosi(steps, ir.VectorType(ir.IntType(32), 32)), ir.VectorType(ir.IntType(16), 32))
        code.store(code.take(whole, ORDER), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), emit
