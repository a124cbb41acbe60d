"""The scales and minima of a row of GGUF blocks, in fp32.

All of a row are read before its numbers are. They stand in 16 bits or 6 between the numbers, and to turn eight of them
into fp32 takes no longer than to turn one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types
from numba.extending import intrinsic

from .block_sums import BLOCK_BYTES
from .native import FAST, floats, halves, octets, signed_octets, wholes
from .record import Q4_0, Q4_1, Q4_K, Q5_1, Q5_K, Q6_K

WITH_MINIMA = (Q4_0, Q4_1, Q5_1, Q4_K, Q5_K)
"""Numbers of Q4_0 are taken as 0 to 15, and not as -8 to 7."""
loop = njit(fastmath=FAST, error_model="numpy", nogil=True)


def room(columns: int) -> int:
    """Bytes that the scales and minima of a row take, with those on the way to them."""
    return 4 * (columns // 16 + 3 * (columns // 32))


def reader(kind: int) -> Any:
    """Compiled code that reads the scales of a row of that kind, and its minima: what is added to each number.

    read(row, columns, scales, minima, behind): addresses; writes fp32 [columns / 32] scales, of Q6_K [columns / 16],
    and if the kind is in WITH_MINIMA fp32 [columns / 32] minima. `room(columns)` bytes are for all three.
    """
    if kind == Q6_K:
        return _read_16
    return _read_6_bits(BLOCK_BYTES[kind]) if kind in (Q4_K, Q5_K) else _read_32(BLOCK_BYTES[kind], kind)


def _read_32(block_bytes: int, kind: int) -> Any:
    stored, below = kind in (Q4_1, Q5_1), np.float32(-8)

    @loop
    def read(row: int, columns: int, scales: int, minima: int, behind: int) -> None:
        """fp16 at the beginning of each block of 32: a scale, and of some kinds a minimum."""
        blocks = columns // 32
        scale, minimum, held = floats(scales, blocks), floats(minima, blocks), halves(behind, blocks)
        for i in range(blocks):
            held[i] = halves(row + i * block_bytes, 1)[0]
        for i in range(blocks):
            scale[i] = widened(held[i])
        if stored:
            for i in range(blocks):
                held[i] = halves(row + i * block_bytes, 2)[1]
            for i in range(blocks):
                minimum[i] = widened(held[i])
        else:
            for i in range(blocks):  # Q4_0
                minimum[i] = below * scale[i]

    return read


def _read_6_bits(block_bytes: int) -> Any:
    @loop
    def read(row: int, columns: int, scales: int, minima: int, behind: int) -> None:
        """Two fp16 for each block of 256, and for each 32 numbers of it 6 bits to multiply either with: of the first
        four in the lower bits of bytes 0-3 and 4-7, of the others in the halves of bytes 8-11 and the upper bits of
        0-7."""
        blocks = columns // 256
        scale, minimum = floats(scales, (blocks, 8)), floats(minima, (blocks, 8))
        six, words = octets(behind, (blocks, 2, 8)), wholes(behind, (blocks, 4))
        for i in range(blocks):
            packed = wholes(row + i * block_bytes + 4, 3)
            a, b, c = packed[0], packed[1], packed[2]
            words[i, 0], words[i, 1] = a & 0x3F3F3F3F, c & 0x0F0F0F0F | (a >> 2) & 0x30303030
            words[i, 2], words[i, 3] = b & 0x3F3F3F3F, (c >> 4) & 0x0F0F0F0F | (b >> 2) & 0x30303030
        for i in range(blocks):
            pair = halves(row + i * block_bytes, 2)
            d, m = widened(pair[0]), -widened(pair[1])
            for j in range(8):
                scale[i, j] = d * float32(six[i, 0, j])
            for j in range(8):
                minimum[i, j] = m * float32(six[i, 1, j])

    return read


@loop
def _read_16(row: int, columns: int, scales: int, minima: int, behind: int) -> None:
    """Behind the numbers of each block of 256: 16 int8, and an fp16 to multiply them with."""
    scale = floats(scales, (columns // 256, 16))
    for i in range(columns // 256):
        after = row + (i + 1) * 210
        d, eights = widened(halves(after - 2, 1)[0]), signed_octets(after - 18, 16)
        for j in range(16):
            scale[i, j] = d * float32(eights[j])


@intrinsic
def widened(context: Any, half: Any) -> Any:
    """fp16, held as uint16, to fp32. No processor needs an instruction for it, and none meets a subnormal number, which
    some multiply a hundred times slower."""
    whole, number = ir.IntType(32), ir.FloatType()

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def plus(value: Any, exponent: int) -> Any:
            return builder.add(value, ir.Constant(whole, exponent << 23))

        def below(value: Any, exponent: int) -> Any:
            return builder.icmp_unsigned("<", value, ir.Constant(whole, exponent << 23))

        wide = builder.zext(args[0], whole)
        sign = builder.shl(builder.and_(wide, ir.Constant(whole, 0x8000)), ir.Constant(whole, 16))
        size = builder.shl(builder.and_(wide, ir.Constant(whole, 0x7FFF)), ir.Constant(whole, 13))
        above = builder.bitcast(plus(size, 113), number)
        subnormal = builder.bitcast(builder.fsub(above, ir.Constant(number, 2.0**-14)), whole)
        finite = builder.select(below(size, 1), subnormal, plus(size, 112))
        bits = builder.select(below(size, 31), finite, plus(size, 224))
        return builder.bitcast(builder.or_(bits, sign), number)

    return types.float32(types.uint16), emit
