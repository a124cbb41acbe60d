"""Numbers in groups that share a minimum and a scale, as whole steps from it; and steps of a few bits as bytes.

A group is a run along the last axis: the fewest runs of at most `most` numbers, equally long but for the last. The
minimum is rounded to fp16 downwards and the scale upwards, so that the steps reach from the least number to the
largest, and a number comes back off by at most half a scale.
"""

from __future__ import annotations

import numpy as np


def num_groups(length: int, most: int) -> int:
    """How many groups `length` numbers make."""
    return -(-length // most)


def quantised(numbers: np.ndarray, most: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantise fp32 `[.., n]`. Returns codes uint8 `[.., n]`, and scales and minima fp16 `[.., ceil(n / most)]`."""
    length, last = numbers.shape[-1], 2**bits - 1
    if not length:
        return numbers.astype(np.uint8), numbers, numbers
    width = -(-length // num_groups(length, most))
    starts = np.arange(0, length, width)
    least = rounded(np.minimum.reduceat(numbers, starts, -1), -np.inf)
    extent = np.maximum.reduceat(numbers, starts, -1) - least.astype(np.float32)
    scale = rounded(extent / last, np.inf)
    steps = numbers - spread(least, length)
    divisor = spread(np.where(scale > 0, scale, 1), length)
    return np.clip(np.rint(steps / divisor), 0, last).astype(np.uint8), scale, least


def restored(codes: np.ndarray, scale: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The numbers that `codes` `[.., n]` stand for, fp32."""
    numbers: np.ndarray = codes * spread(scale, codes.shape[-1]) + spread(least, codes.shape[-1])
    return numbers


def spread(table: np.ndarray, length: int) -> np.ndarray:
    """Each group's number for each of its members: fp32 `[.., length]`, or `[.., 1]` for a single group."""
    wide = table.astype(np.float32)
    if table.shape[-1] <= 1:
        return wide
    return wide.repeat(-(-length // table.shape[-1]), -1)[..., :length]


def rounded(numbers: np.ndarray, towards: float) -> np.ndarray:
    """Round fp32 to fp16, never away from `towards`, which is -inf or inf."""
    near = numbers.astype(np.float16)
    short = near.astype(np.float32) > numbers if towards < 0 else near.astype(np.float32) < numbers
    return np.where(short, np.nextafter(near, np.float16(towards)), near)


def packed_bytes(count: int, bits: int) -> int:
    """The bytes that so many codes take."""
    return -(-count * bits // 8)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits behind one another, uint8 `[packed_bytes]`: the first in a byte's lowest bits."""
    flat = codes.reshape(-1)
    each = 8 // bits
    if 8 % bits or len(flat) % each:
        low = np.unpackbits(flat[:, None], axis=1, count=bits, bitorder="little")
        return np.packbits(low, bitorder="little")
    out = flat[::each].copy()
    for place in range(1, each):
        out |= flat[place::each] << (place * bits)
    return out


def unpacked(bytes_: np.ndarray, count: int, bits: int) -> np.ndarray:
    """The `count` codes that `packed` made these bytes of, uint8."""
    if bits == 8:
        return bytes_[:count]
    if 8 % bits:
        low = np.unpackbits(bytes_, count=count * bits, bitorder="little").reshape(count, bits)
        return np.packbits(low, axis=1, bitorder="little")[:, 0]
    codes = np.empty((len(bytes_), 8 // bits), dtype=np.uint8)
    for place in range(8 // bits):
        codes[:, place] = bytes_ >> (place * bits) & (2**bits - 1)
    return codes.reshape(-1)[:count]
