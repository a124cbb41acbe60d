"""Rows of a weight as a GGUF file packs them, as fp32: to the bit as gguf's own code does.

A block is a scale, perhaps a minimum, and numbers of a few bits: w = scale * number + minimum. The K kinds have 256
numbers in a block, and its scale is multiplied with one of a few bits for each 16 or 32 of them.

There is an operation for each kind, compiled when a file has it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import float32, int32, uint32

from .native import as_float, floats, halves, longs, loop, octets, signed_octets, wholes, widen_half
from .native import widen as to_float
from .operation import Operation, operation
from .record import (
    BF16,
    BLOCKS,
    F32,
    MXFP4,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    W_CHUNK,
    W_COLUMNS,
    W_COUNT,
    W_IDS,
    W_OUT,
    W_PAIRS,
    W_WEIGHT,
    WIDTH,
)  # fmt: skip


@cache
def widen(kind: int) -> Operation:
    """The operation WIDEN for a kind, but I8."""
    numbers, size = BLOCKS[kind]

    def rows(row: int, item: int, scratch: int) -> None:
        op = longs(row, WIDTH)
        columns, pairs = op[W_COLUMNS], op[W_PAIRS]
        blocks, begin = columns // numbers, item * op[W_CHUNK]
        for n in range(begin, min(begin + op[W_CHUNK], op[W_COUNT])):
            read, written = n, n
            if op[W_IDS] != 0:
                read = longs(op[W_IDS], op[W_COUNT])[n]
            if pairs != 0:
                within = n % pairs
                written = n - within + within // 2 + within % 2 * (pairs // 2)
            at, to = op[W_WEIGHT] + read * blocks * size, op[W_OUT] + 4 * written * columns
            for i in range(blocks):
                block, out = at + i * size, floats(to + 4 * i * numbers, numbers)
                if kind == Q8_0:  # a constant here: of these only one is compiled
                    _q8_0(block, out)
                elif kind == Q4_0:
                    _q4_0(block, out)
                elif kind == Q4_1:
                    _q4_1(block, out)
                elif kind == Q5_0:
                    _q5_0(block, out)
                elif kind == Q5_1:
                    _q5_1(block, out)
                elif kind == Q4_K:
                    _q4_k(block, out)
                elif kind == Q5_K:
                    _q5_k(block, out)
                elif kind == Q6_K:
                    _q6_k(block, out)
                elif kind == MXFP4:
                    _mxfp4(block, out)
                elif kind == BF16:
                    out[0] = to_float(halves(block, 1)[0])
                elif kind == F32:
                    out[0] = floats(block, 1)[0]

    return operation(rows)


@loop
def _scale(block: int, number: int) -> Any:
    """The fp16 number at the beginning of a block, or one after it."""
    return widen_half(halves(block, number + 1)[number])


@loop
def _q8_0(block: int, out: Any) -> None:
    scale, eights = _scale(block, 0), signed_octets(block + 2, 32)
    for i in range(32):
        out[i] = scale * float32(eights[i])


@loop
def _q4_0(block: int, out: Any) -> None:
    scale, fours = _scale(block, 0), octets(block + 2, 16)
    for i in range(16):
        out[i] = scale * float32(int32(fours[i] & 15) - 8)
        out[i + 16] = scale * float32(int32(fours[i] >> 4) - 8)


@loop
def _q4_1(block: int, out: Any) -> None:
    scale, least, fours = _scale(block, 0), _scale(block, 1), octets(block + 4, 16)
    for i in range(16):
        out[i] = scale * float32(fours[i] & 15) + least
        out[i + 16] = scale * float32(fours[i] >> 4) + least


@loop
def _fifth(bits: Any, number: int) -> Any:
    return int32((uint32(bits) >> uint32(number)) & uint32(1)) << int32(4)


@loop
def _q5_0(block: int, out: Any) -> None:
    scale, fours, bits = _scale(block, 0), octets(block + 6, 16), wholes(block + 2, 1)[0]
    for i in range(16):
        out[i] = scale * float32((int32(fours[i] & 15) | _fifth(bits, i)) - 16)
        out[i + 16] = scale * float32((int32(fours[i] >> 4) | _fifth(bits, i + 16)) - 16)


@loop
def _q5_1(block: int, out: Any) -> None:
    scale, least = _scale(block, 0), _scale(block, 1)
    fours, bits = octets(block + 8, 16), wholes(block + 4, 1)[0]
    for i in range(16):
        out[i] = scale * float32(int32(fours[i] & 15) | _fifth(bits, i)) + least
        out[i + 16] = scale * float32(int32(fours[i] >> 4) | _fifth(bits, i + 16)) + least


@loop
def _six_bits(block: int, part: int) -> Any:
    """What multiplies the scale of one of eight parts of a Q4_K or Q5_K block, and what its minimum."""
    packed = octets(block + 4, 12)
    if part < 4:
        return float32(packed[part] & 63), float32(packed[part + 4] & 63)
    low, high = packed[part + 4], packed[part - 4] >> 6
    return float32((low & 15) | (high << 4)), float32((low >> 4) | ((packed[part] >> 6) << 4))


@loop
def _q4_k(block: int, out: Any) -> None:
    scale, least = _scale(block, 0), _scale(block, 1)
    for part in range(8):
        of_scale, of_least = _six_bits(block, part)
        d, m = scale * of_scale, least * of_least
        fours, some, shift = octets(block + 16 + part // 2 * 32, 32), out[32 * part : 32 * part + 32], part % 2 * 4
        for i in range(32):
            some[i] = d * float32((int32(fours[i]) >> int32(shift)) & int32(15)) - m


@loop
def _q5_k(block: int, out: Any) -> None:
    scale, least, fifths = _scale(block, 0), _scale(block, 1), octets(block + 16, 32)
    for part in range(8):
        of_scale, of_least = _six_bits(block, part)
        d, m = scale * of_scale, least * of_least
        fours, some, shift = octets(block + 48 + part // 2 * 32, 32), out[32 * part : 32 * part + 32], part % 2 * 4
        for i in range(32):
            four = (int32(fours[i]) >> int32(shift)) & int32(15)
            some[i] = d * float32(four | (((int32(fifths[i]) >> int32(part)) & int32(1)) << int32(4))) - m


@loop
def _q6_k(block: int, out: Any) -> None:
    scale, eights = widen_half(halves(block + 208, 1)[0]), signed_octets(block + 192, 16)
    for part in range(8):  # 32 numbers each: the low bits of four parts are those of 64 bytes, two parts in each half
        half, within = part // 4, part % 4
        fours, twos = octets(block + 64 * half + 32 * (within % 2), 32), octets(block + 128 + 32 * half, 32)
        some, low, high = out[32 * part : 32 * part + 32], within // 2 * 4, within * 2
        for side in range(2):
            d = scale * float32(eights[2 * part + side])
            for i in range(16 * side, 16 * side + 16):
                four = (int32(fours[i]) >> int32(low)) & int32(15)
                some[i] = d * float32((four | (((int32(twos[i]) >> int32(high)) & int32(3)) << int32(4))) - 32)


@loop
def _mxfp4(block: int, out: Any) -> None:
    power, fours = int32(octets(block, 1)[0]), octets(block + 1, 16)
    scale = as_float(int32(1 << 21) << power if power < int32(2) else (power - int32(1)) << int32(23))
    for i in range(16):
        out[i] = scale * float32(_twice(int32(fours[i]) & int32(15)))
        out[i + 16] = scale * float32(_twice(int32(fours[i]) >> int32(4)))


@loop
def _twice(four: int) -> int:
    """Twice the number that four bits stand for."""
    step = four & 7
    size = step if step < 5 else 2 * step - 4 if step < 7 else 12
    return -size if four > 7 else size
