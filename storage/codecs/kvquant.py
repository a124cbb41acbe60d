"""Code points learned from the model's own keys and values, and outliers apart (KVQuant, arXiv 2401.18079)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import RecordError
from ..page import PageLayout
from .codec import Profile
from .groups import rounded
from .lossy import HALF, SCALE, LossyCodec, Part

BITS = (2, 3, 4)
OUTLIERS = 0.01
"""Share of a page's numbers of a KV head, of keys and of values each, that are kept as they are."""
PROFILE = "kvquant."
"""What the names of its tensors in a profile begin with; the number of bits follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KVQuantOptions:
    """Settings of `KVQuantCodec`."""

    bits: int = 3
    """Bits per number, 2 to 4."""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is 2 to 4, not {self.bits}")


class KVQuantCodec(LossyCodec):
    """Idea   numbers lie thick in the middle of their group and thin at its ends, so even steps are wasted: code points
             are learned, per layer, for keys and values. Outliers, which would stretch their group, are kept apart.
    For    the least error for its bytes, after `stratakv calibrate`.
    State  codes of `bits` bits, a middle and an extent per key channel and per value token, place and number of each
             outlier (one in a hundred), and the code points themselves: at 16 tokens of 64 channels 4.6 bits a number,
             at 64 tokens 3.8, and as many more or less as `bits`.
    Cost   to encode, a sort of the page; to decode, a look-up.
    Paper  KVQuant, arXiv 2401.18079: keys before RoPE by channel, values by token, 1 % outliers, first tokens exact.
    Differs  keys have their positions applied, and a channel's extent is that of the page, where the paper learns one
             per channel before RoPE. Code points are learned (`stratakv calibrate`) from pages of 16 tokens; the paper
             weighs errors by squared gradients, which take a backward pass: here a key's weigh by the mean square of
             the queries' same channel, a value's all alike. Outliers are those farthest from their group's median, a
             fixed number of them, for keys as for values (the paper has thresholds learned per key channel). Every page
             holds its code points, so that it can be read without the profile. A text's first page is written
             losslessly, where the paper keeps a first token, or a few.
    """

    name, code = "kvquant", 8
    Options = KVQuantOptions
    needs_profile = PROFILE
    keeps_first = True

    def __init__(
        self, layout: PageLayout, options: KVQuantOptions | None = None, profile: Profile | None = None
    ) -> None:
        options = options or KVQuantOptions()
        self._bits = options.bits
        self._each = layout.page_size * layout.head_dim
        self._index_bits = max(1, (self._each - 1).bit_length())
        super().__init__(layout, options, profile)

    def parts(self) -> list[Part]:
        apart = (self.sides, self.heads, num_outliers(self._each))
        tables = ((self.heads, 1, self.channels), (self.heads, self.tokens, 1))[: self.sides]
        return [
            Part(HALF, (self.sides, 2**self._bits)),
            *(Part(kind, table) for table in tables for kind in (SCALE, HALF)),
            Part(1, (*apart, self._index_bits)), Part(HALF, apart),
            Part(self._bits, (self.sides, self.heads, self.tokens, self.channels)),
        ]  # fmt: skip

    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        assert self.profile is not None, "pages are encoded with a profile"
        points = self.profile[f"{PROFILE}{self._bits}"][: self.sides].astype(np.float32)
        found = [scaled(side, numbers[side]) for side in range(self.sides)]
        tables = [table for each in found for table in (each.half, each.middle)]
        places = np.stack([each.places for each in found])
        codes = [np.searchsorted((p[1:] + p[:-1]) / 2, each.even) for p, each in zip(points, found, strict=True)]
        apart = np.take_along_axis(numbers.reshape(*places.shape[:2], -1), places, -1)
        bits = places[..., None] >> np.arange(self._index_bits) & 1
        return [points, *tables, bits.astype(np.uint8), apart, np.stack(codes).astype(np.uint8)]

    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        points, *tables, bits, apart, codes = arrays
        places = (bits.astype(np.int64) << np.arange(self._index_bits)).sum(-1)
        if (places >= self._each).any():
            raise RecordError("payload: an outlier outside the page")
        sides = zip(points, codes, tables[::2], tables[1::2], strict=True)
        numbers = np.stack([p[code] * half + middle for p, code, half, middle in sides])
        np.put_along_axis(numbers.reshape(*places.shape[:2], -1), places, apart, -1)
        return numbers


class Scaled(NamedTuple):
    """One side of pages, `[.., G, L, D]`, as numbers from -1 to 1."""

    even: np.ndarray
    half: np.ndarray
    """Half the extent of each group without its outliers, fp16: keys `[.., G, 1, D]`, values `[.., G, L, 1]`."""
    middle: np.ndarray
    places: np.ndarray
    """Where a KV head's outliers are among its L D numbers, int64 `[.., G, k]`, in order."""


def scaled(side: int, numbers: np.ndarray) -> Scaled:
    """Find the outliers of `[.., G, L, D]` and bring each group's others to -1 to 1, and outliers to the usual."""
    axis = -2 if side == 0 else -1
    usual = np.median(numbers, axis, keepdims=True)
    flat = (*numbers.shape[:-2], -1)
    far = np.abs(numbers - usual).reshape(flat)
    places = np.sort((-far).argsort(-1, kind="stable")[..., : num_outliers(far.shape[-1])], -1)
    is_apart = np.zeros(far.shape, dtype=bool)
    np.put_along_axis(is_apart, places, True, -1)
    rest = np.where(is_apart.reshape(numbers.shape), usual, numbers)
    least, largest = rest.min(axis, keepdims=True), rest.max(axis, keepdims=True)
    middle = ((least + largest) / 2).astype(np.float16)
    half = rounded(np.maximum(largest - middle, middle - least), np.inf)
    return Scaled((rest - middle) / np.where(half > 0, half, 1).astype(np.float32), half, middle, places)


def num_outliers(count: int) -> int:
    """How many of a KV head's `count` numbers are kept apart."""
    return max(1, round(OUTLIERS * count))
