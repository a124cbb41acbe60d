"""The code that int8, int4 and kivi share: keys in groups per channel, values in groups per token (KIVI, arXiv
2402.02750).

Idea   Outliers of keys stay in the same channels, so a channel's tokens share a scale; values have no
       such channels, so runs of a token's channels share one.
Bytes  fp16 scales and minima of keys `[G, D, ceil(L/32)]`, then of values `[G, L, ceil(D/most)]`, then the
       codes of keys and of values `[G, L, D]`, the first in a byte's lowest bits. Of pages whose keys contain the
       values there are those of keys only.
Error  At most half a scale, and the rounding of the result to its dtype.
"""

from __future__ import annotations

import numpy as np

from .groups import num_groups, quantised, restored
from .lossy import HALF, SCALE, LossyCodec, Part

TOKENS = 32
"""The most tokens of a key's channel that share a scale."""


def grouped_parts(shape: tuple[int, int, int, int], bits: int, most: tuple[int, int]) -> list[Part]:
    """The parts of numbers `[S, G, n, D]` in groups of at most `most`: (tokens of a key, channels of a value)."""
    sides, heads, tokens, channels = shape
    tables = (heads, channels, num_groups(tokens, most[0])), (heads, tokens, num_groups(channels, most[1]))
    return [*(Part(kind, table) for table in tables[:sides] for kind in (SCALE, HALF)), Part(bits, shape)]


def group(numbers: np.ndarray, bits: int, most: tuple[int, int]) -> list[np.ndarray]:
    """The arrays of `grouped_parts` of fp32 `numbers`."""
    keys, *tables = quantised(numbers[0].swapaxes(1, 2), most[0], bits)
    codes = [keys.swapaxes(1, 2)]
    for values in numbers[1:]:
        found, *more = quantised(values, most[1], bits)
        codes, tables = [*codes, found], [*tables, *more]
    return [*tables, np.stack(codes)]


def ungroup(arrays: list[np.ndarray]) -> np.ndarray:
    """The numbers, fp32 `[S, G, n, D]`, of what `group` returned."""
    codes = arrays[-1]
    numbers = np.empty(codes.shape, dtype=np.float32)
    numbers[0] = restored(codes[0].swapaxes(1, 2), *arrays[:2]).swapaxes(1, 2)
    if len(codes) == 2:
        numbers[1] = restored(codes[1], *arrays[2:4])
    return numbers


class GroupedCodec(LossyCodec):
    """A page as codes of `bits` bits; see the module."""

    bits: int
    """Bits of a code."""
    most: int = 64
    """The most channels of a token's value that share a scale."""

    def parts(self) -> list[Part]:
        shape = self.sides, self.heads, self.tokens, self.channels
        return grouped_parts(shape, self.bits, (TOKENS, self.most))

    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        return group(numbers, self.bits, (TOKENS, self.most))

    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        return ungroup(arrays)
