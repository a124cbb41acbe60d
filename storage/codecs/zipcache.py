"""Tokens that matter in 4 bits, the others in 2, values by token and channel (ZipCache, arXiv 2405.14256)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RecordError
from ..page import PageLayout
from .codec import Profile
from .groups import quantised, restored
from .lossy import HALF, SCALE, LossyCodec, Part

MORE, LESS = 4, 2
"""Bits of a number of a salient token, and of another."""
COARSER = (2**MORE - 1) // (2**LESS - 1)
"""How much longer the steps of fewer bits are over the same extent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipCacheOptions:
    """Settings of `ZipCacheCodec`."""

    salient: int = 60
    """Percent of a page's tokens that get more bits, rounded up."""

    def __post_init__(self) -> None:
        if not 0 <= self.salient <= 100:
            raise ValueError(f"salient is 0 to 100 percent, not {self.salient}")


class ZipCacheCodec(LossyCodec):
    """Idea   a token that gets attention is worth more bits. Values share a scale by token once each channel is divided
             by the root of its largest number, which takes outliers of channels out; keys share one by channel.
    For    bits where attention goes, without calibration.
    State  codes of 4 bits for 60 % of a page's tokens and of 2 for the others, a bit per token and KV head which it is,
             and the scales: at 16 tokens of 64 channels 5 bits a number, at 64 tokens 3.9.
    Cost   as plain codes, and the norms of keys.
    Paper  ZipCache, arXiv 2405.14256: 60 % at 4 bits, again for every 100 new tokens.
    Differs  the paper calls those tokens salient to which the last 5 % of queries and as many others give most
             attention per query that can see them. A codec sees no queries: here a KV head's keys of least norm are
             salient, for such keys get most attention in most heads (arXiv 2406.11430). They are chosen within a page,
             as many in each, and once. A key channel has one minimum and one extent for tokens of both widths. The
             paper's code codes each kind for itself, which in pages of 16 tokens would cost a key 2 bits more.
    """

    name, code = "zipcache", 7
    Options = ZipCacheOptions

    def __init__(
        self, layout: PageLayout, options: ZipCacheOptions | None = None, profile: Profile | None = None
    ) -> None:
        options = options or ZipCacheOptions()
        self._count = -(-layout.page_size * options.salient // 100)
        super().__init__(layout, options, profile)

    def parts(self) -> list[Part]:
        heads, rest = self.heads, self.tokens - self._count
        found = [Part(1, (heads, self.tokens)), *(Part(kind, (heads, self.channels, 1)) for kind in (SCALE, HALF))]
        if self.sides == 2:
            found += [Part(SCALE, (heads, 1, self.channels))]
            found += [Part(kind, (heads, count, 1)) for count in (self._count, rest) for kind in (SCALE, HALF)]
        codes = zip((MORE, LESS), (self._count, rest), strict=True)
        return found + [Part(bits, (self.sides, heads, count, self.channels)) for bits, count in codes]

    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        norms = np.square(numbers[0], dtype=np.float64).sum(-1)
        is_salient = norms.argsort(-1, kind="stable").argsort(-1) < self._count
        _, scale, least = quantised(numbers[0].swapaxes(1, 2), self.tokens, MORE)
        steps = (numbers[0] - least.swapaxes(1, 2)) / np.where(scale > 0, scale, 1).swapaxes(1, 2).astype(np.float32)
        codes = [
            [np.clip(np.rint(_of(mask, steps) / longer), 0, 2**bits - 1).astype(np.uint8)]
            for mask, longer, bits in ((is_salient, 1, MORE), (~is_salient, COARSER, LESS))
        ]
        tables = [is_salient.astype(np.uint8), scale, least]
        for values in numbers[1:]:
            sizes = np.sqrt(np.abs(values).max(1, keepdims=True)).astype(np.float16)
            even = values / np.where(sizes > 0, sizes, 1).astype(np.float32)
            tables.append(sizes)
            for found, mask, bits in zip(codes, (is_salient, ~is_salient), (MORE, LESS), strict=True):
                more, *both = quantised(_of(mask, even), self.channels, bits)
                tables += both
                found.append(more)
        return [*tables, *map(np.stack, codes)]

    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        is_salient, scale, least, *rest, more, less = arrays
        mask = is_salient.astype(bool)
        if (mask.sum(-1) != self._count).any():
            raise RecordError(f"payload: as many salient tokens as {self.name} does not write")
        numbers = np.empty((self.sides, self.heads, self.tokens, self.channels), dtype=np.float32)
        steps = np.empty(numbers.shape[1:], dtype=np.float32)
        steps[mask], steps[~mask] = more[0].reshape(-1, self.channels), COARSER * less[0].reshape(-1, self.channels)
        numbers[0] = steps * scale.swapaxes(1, 2) + least.swapaxes(1, 2)
        if self.sides == 2:
            sizes, *tables = rest
            numbers[1][mask] = restored(more[1], *tables[:2]).reshape(-1, self.channels)
            numbers[1][~mask] = restored(less[1], *tables[2:]).reshape(-1, self.channels)
            numbers[1] *= sizes
        return numbers


def _of(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows of `[G, L, D]` that `mask` `[G, L]` has, as many in each head: `[G, n, D]`."""
    found: np.ndarray = rows[mask].reshape(len(rows), int(mask[0].sum()), rows.shape[-1])
    return found
