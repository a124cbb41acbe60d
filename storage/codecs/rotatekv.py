"""Keys turned by a Hadamard matrix before they are coded (RotateKV, arXiv 2501.16383): outliers become everybody's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..page import PageLayout
from .codec import Profile
from .groups import num_groups, quantised, restored
from .lossy import HALF, LIMIT, SCALE, LossyCodec, Part

GROUP = 128
"""The most channels of a token that share a scale."""
HEADS = 4
"""The most KV heads that are turned together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RotateKVOptions:
    """Settings of `RotateKVCodec`."""

    bits: int = 2
    """Bits per number, 2 to 4; the paper's headline is 2."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 4:
            raise ValueError(f"bits is 2 to 4, not {self.bits}")


class RotateKVCodec(LossyCodec):
    """Idea   a Hadamard matrix turns a few large channels into a little in every channel, so that one scale serves 128
             channels of a token, where an outlier would spoil it. Decoding turns back, so attention is unchanged.
    For    the fewest bytes; with `bits=4` where two were not seen to hold the text (docs/decisions/0053).
    State  codes of `bits` bits and 4 bytes per 128 of them: 2.25 bits a number, or 3.25, 4.25; the fewest of all.
             Scales by channel, which `int4` and `kivi` have, are more exact where the same channels are always large,
             and cost two bits a number more of keys in pages of 16 tokens.
    Cost   a pass over keys for every doubling of the channels that are turned: nine for 512.
    Paper  RotateKV, arXiv 2501.16383: keys before RoPE, channels in an order learned offline, 4 heads turned at once.
    Differs  the codec sees keys with their positions applied and turns those: RoPE mixes pairs of channels before,
             which spreads an outlier over two. Channels stay in their order. A text's first page is written losslessly,
             where the paper finds sinks by massive activations and keeps those in fp16. Heads are turned by four, or by
             two or singly where four do not divide them. Where their channels are no power of two, equal runs of them,
             each a power of two, are turned for themselves. `bits=3` has 8 steps (the authors' simulation has 9 there).
    """

    name, code = "rotatekv", 5
    Options = RotateKVOptions
    keeps_first = True

    def __init__(
        self, layout: PageLayout, options: RotateKVOptions | None = None, profile: Profile | None = None
    ) -> None:
        options = options or RotateKVOptions()
        self._bits = options.bits
        together = next(count for count in (HEADS, 2, 1) if layout.num_heads % count == 0)
        self._rows = (layout.num_heads // together, together * layout.head_dim)
        self._width = self._rows[1] & -self._rows[1]  # the largest power of two that divides the channels
        super().__init__(layout, options, profile)

    def parts(self) -> list[Part]:
        many, channels = self._rows
        table = (self.sides, many, self.tokens, num_groups(channels, GROUP))
        return [Part(SCALE, table), Part(HALF, table), Part(self._bits, (self.sides, many, self.tokens, channels))]

    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        many, channels = self._rows
        rows = numbers.reshape(self.sides, many, -1, self.tokens, self.channels).swapaxes(2, 3)
        rows = rows.reshape(self.sides, many, self.tokens, channels).copy()
        rows[0] = self._turned(rows[0]) / self._width
        codes, scale, least = quantised(rows, GROUP, self._bits)
        return [scale, least, codes]

    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        scale, least, codes = arrays
        rows = restored(codes, scale, least)
        rows[0] = np.clip(self._turned(rows[0]), -LIMIT, LIMIT)
        heads = rows.reshape(self.sides, self._rows[0], self.tokens, -1, self.channels).swapaxes(2, 3)
        return heads.reshape(self.sides, self.heads, self.tokens, self.channels)

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        """Runs of `_width` channels times the Hadamard matrix of ones and minus ones; twice is times `_width`."""
        turned, step = rows.reshape(-1, self._width), 1
        while step < self._width:
            pairs = turned.reshape(len(turned), -1, 2, step)
            turned = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
            turned, step = turned.reshape(len(turned), self._width), 2 * step
        return turned.reshape(rows.shape)
