"""The largest number of text items (sentences, verses, rows, ...) that fit a given number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_PROBED_ITEMS = 16
"""The number of items that are tried first: their tokens tell where to look next."""
_ESTIMATES = 3
"""The number of estimates in a row before a step that surely shrinks the interval."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A length in tokens, and the way to count them."""

    tokens: int
    """The most tokens that a text may have. The caller subtracts room for the reply and a chat template's words."""
    count: Callable[[str], int]

    def largest(self, make: Callable[[int], str], *, smallest: int = 1, limit: int | None = None) -> int:
        """The largest n from `smallest` to `limit` for which `make(n)` fits.

        Counting a long text is slow: each text counted gives an estimate of where the end is. Where lengths do not
        quite grow with n, `make(n)` still fits, and `make(n + 1)` does not unless n is the limit.

        Args:
            make: the text of n items, each at least one token.
            limit: most items there are; without it, as many as there are tokens.

        Raises:
            ValueError: not even `make(smallest)` fits.
        """
        least = self.count(make(smallest))
        if least > self.tokens:
            raise ValueError(
                f"the shortest text of this task has {least} tokens, more than the {self.tokens} asked for"
            )
        end = max(smallest, self.tokens if limit is None else min(limit, self.tokens)) + 1
        good, bad, items, tries = smallest, end, smallest + _PROBED_ITEMS, 0
        while bad - good > 1:
            items = min(max(items, good + 1), bad - 1)
            used = self.count(make(items))
            good, bad = (items, bad) if used <= self.tokens else (good, items)
            tries += 1
            if tries % (_ESTIMATES + 1):
                items += (self.tokens - used) * (items - smallest) // max(1, used - least)
            else:
                items = (good + bad) // 2 if bad < end else 2 * good
        return good
