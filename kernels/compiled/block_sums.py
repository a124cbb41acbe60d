"""Sums over the numbers of GGUF blocks, as instructions on vectors: what plain loops are too slow for.

A block's numbers are taken 32 at a time. In four steps, eight of them are cut out of eight int32, become fp32, and are
multiplied with x. They are cut out where they stand, since a shift more is an instruction more: a number comes out
some power of two too large, and x is made smaller by it beforehand (`arrange`).

x is fp32 all the way. Rounded to 16 bits, with a scale for each 32 numbers, it moves the logits of a small model by
1e-2; in two parts of 16 bits it does not, and sums of products of integers are then no faster than these.

    order of x    Number 8 k + i of each 32 is x[4 i + k], 8 k + 4 + i is x[16 + 4 i + k], for k and i below four: the
                  kth bytes of eight int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from .block_code import BLOCK_NUMBERS, F32, FLOATS, I64, NUMBERS, ONE, ORDER, SCALES, SHIFTS, TWO, Code
from .record import Q4_0, Q4_1, Q4_K, Q5_1, Q5_K

WITH_MINIMA = (Q4_1, Q5_1, Q4_K, Q5_K)


class Sums(types.Type):  # type: ignore[misc]
    """Eight sums for each of some vectors x, over the blocks of a row of one kind, and if the kind has minima, eight
    more of those. They live in registers."""

    def __init__(self, kind: int, vectors: int) -> None:
        self.kind, self.vectors = kind, vectors
        self.registers = ir.ArrayType(FLOATS, 2 * vectors if kind in WITH_MINIMA else vectors)
        super().__init__(name=f"Sums({kind}, {vectors})")


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of: Sums) -> None:
        super().__init__(manager, of, of.registers)


@intrinsic(prefer_literal=True)
def no_sums(context: Any, kind: Any, vectors: Any) -> Any:
    """The sums over no blocks; both arguments are constants."""
    if not isinstance(kind, types.IntegerLiteral) or not isinstance(vectors, types.IntegerLiteral):
        return None
    of = Sums(kind.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(of.registers, None)

    return of(kind, vectors), emit


@intrinsic
def with_block(context: Any, sums: Any, block: Any, x: Any, pitch: Any, x_sums: Any, sums_pitch: Any, room: Any) -> Any:
    """The sums with one more block: scale * (numbers . x) + minimum * (sum of x).

    Args:
        block: address of the block in the file.
        x, x_sums: addresses of its numbers of the first vector x, and of their sums, as `blocks.prepare` leaves both.
        pitch, sums_pitch: bytes from one vector's to the next one's.
        room: address of 64 bytes.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        state, block, x, pitch, x_sums, sums_pitch, room = args
        count, times = sums.vectors, [ir.Constant(I64, v) for v in range(sums.vectors)]
        vectors = [builder.add(x, builder.mul(pitch, v)) for v in times]
        of_vectors = [builder.add(x_sums, builder.mul(sums_pitch, v)) for v in times]
        registers = [builder.extract_value(state, i) for i in range(sums.registers.count)]
        scales, minima = SCALES[sums.kind](code, block, room)
        for part, numbers in enumerate(NUMBERS[sums.kind](code, block)):
            scale = scales(part)
            for v, vector in enumerate(vectors):
                of_x = [code.load(FLOATS, code.past(vector, 128 * part + 32 * k)) for k in range(4)]
                if sums.kind == Q4_0:  # the sum belongs under the scale as the numbers do
                    total = code.product_and(numbers[0], of_x[0], code.wide(code.load(ONE, of_vectors[v])))
                else:
                    total = builder.fmul(numbers[0], of_x[0])
                for k in range(1, 4):
                    total = code.product_and(numbers[k], of_x[k], total)
                registers[v] = code.product_and(total, scale, registers[v])
        if minima is not None:
            for v, of_vector in enumerate(of_vectors):
                of_x = code.wide(code.load(FLOATS if BLOCK_NUMBERS[sums.kind] == 256 else TWO, of_vector))
                registers[count + v] = code.product_and(minima, of_x, registers[count + v])
        for i, register in enumerate(registers):
            state = builder.insert_value(state, register, i)
        return state

    return sums(sums, *[types.int64] * 6), emit


@intrinsic
def leave(context: Any, sums: Any, address: Any, pitch: Any, count: Any) -> Any:
    """Write the sum of the eight of the first `count` vectors x, fp32, to addresses `pitch` bytes apart."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder)
        state, address, pitch, count = args
        for v in range(sums.vectors):
            total = builder.extract_value(state, v)
            if sums.kind in WITH_MINIMA:
                total = builder.fadd(total, builder.extract_value(state, sums.vectors + v))
            for half in (4, 2, 1):
                total = builder.fadd(code.take(total, [*range(half)]), code.take(total, [*range(half, 2 * half)]))
            to = builder.inttoptr(builder.add(address, builder.mul(pitch, ir.Constant(I64, v))), F32.as_pointer())
            with builder.if_then(builder.icmp_signed(">", count, ir.Constant(I64, v)), likely=True):
                builder.store(builder.extract_element(total, ir.Constant(ir.IntType(32), 0)), to)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64, types.int64), emit


@intrinsic
def arrange(context: Any, x: Any, factors: Any, out: Any) -> Any:
    """Write 32 numbers of x, fp32, to `out` in the order of sums, each times what makes up for its partner being too
    large (`FACTORS`)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, of = Code(context, builder), ir.VectorType(F32, 32)
        ordered = code.take(code.load(of, args[0]), ORDER)
        to = builder.inttoptr(args[2], of.as_pointer())
        builder.store(builder.fmul(ordered, code.load(of, args[1])), to, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


FACTORS = np.array([[2.0**-shift for shift in SHIFTS[form]] for form in sorted(SHIFTS)], dtype=np.float32)
"""For each way in which the partners stand."""
