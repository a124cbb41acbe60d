"""Positions spaced ever wider backwards stay exact, the others take 2 bits (LogQuant, arXiv 2503.19950)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..page import PageLayout
from .codec import Profile
from .grouped import group, grouped_parts, ungroup
from .lossy import LossyCodec, Part

GROUP = 64
"""The most tokens of a key's channel, and the most channels of a token's value, that share a scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogQuantOptions:
    """Settings of `LogQuantCodec`."""

    bits: int = 2
    """Bits per number of the tokens that are not exact: 2 or 4."""
    window: int = 2
    """The rule's W: from 2 W to 3 W - 1 tokens of a page are exact."""

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise ValueError(f"bits is 2 or 4, not {self.bits}")
        if not 1 <= self.window <= 255:
            raise ValueError(f"window is 1 to 255 tokens, not {self.window}")


def exact_tokens(count: int, window: int) -> list[int]:
    """The paper's rule: whenever 3 W tokens are exact, every other of the oldest 2 W is so no more."""
    kept: list[int] = []
    for token in range(count):
        kept.append(token)
        if len(kept) == 3 * window:
            kept = kept[: 2 * window : 2] + kept[2 * window :]
    return kept


class LogQuantCodec(LossyCodec):
    """Idea   attention's weights thin out backwards about as a logarithm does, and which tokens get them is hard to
             tell: so by position alone some stay exact, spaced ever wider, and the others take 2 bits.
    For    texts where no score tells which tokens matter; pages of 64 tokens or more.
    State  exact tokens as they are, of the others codes and 4 bytes per group: at 16 tokens of 64 channels in bf16 6.7
             bits a number, at 64 tokens 3.4: it is for larger pages.
    Cost   as plain codes.
    Paper  LogQuant, arXiv 2503.19950: W = 64 over the whole text, groups of 64, 2 bits.
    Differs  the rule runs over the page as if it were the text, so W is 2 and not 64, and every page has its own exact
             tokens: a page is written once, when it is complete, and what is recent moves on. The paper's recent
             tokens are those that memory holds, which are exact. Keys share scales by channel and values by
             token, as in KIVI; how the paper's code does could not be checked.
    """

    name, code = "logquant", 6
    Options = LogQuantOptions

    def __init__(
        self, layout: PageLayout, options: LogQuantOptions | None = None, profile: Profile | None = None
    ) -> None:
        options = options or LogQuantOptions()
        self._bits = options.bits
        self._is_exact = np.zeros(layout.page_size, dtype=bool)
        self._is_exact[exact_tokens(layout.page_size, options.window)] = True
        super().__init__(layout, options, profile)

    def parts(self) -> list[Part]:
        exact = int(self._is_exact.sum())
        rest = self.sides, self.heads, self.tokens - exact, self.channels
        own = Part(self.layout.dtype, (self.sides, self.heads, exact, self.channels))
        return [own, *grouped_parts(rest, self._bits, (GROUP, GROUP))]

    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        rest = group(numbers[:, :, ~self._is_exact], self._bits, (GROUP, GROUP))
        return [numbers[:, :, self._is_exact], *rest]

    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        numbers = np.empty((self.sides, self.heads, self.tokens, self.channels), dtype=np.float32)
        numbers[:, :, self._is_exact] = arrays[0]
        numbers[:, :, ~self._is_exact] = ungroup(arrays[1:])
        return numbers
