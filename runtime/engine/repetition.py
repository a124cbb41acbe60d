"""Noticing that a reply says the same thing over and over.

A small model that decodes greedily can fall into a loop it never leaves: from some token on, its last words make the
same words the likeliest ones again. Such a loop is seen in the tokens alone: the reply ends with copies of a piece of
itself, one right after the other. Whatever changes from copy to copy, as in a count, is no loop.
"""

from __future__ import annotations

import numpy as np

CHAT_COPIES = 3
"""So many copies in a row end a reply in a chat."""
_FEWEST_TOKENS = 48
"""Copies that make up less than this are let be: rules, braces, zeros, a line three times, "ha ha ha"."""
_LONGEST_COPY = 256


class Repetition:
    """Watches one reply's tokens.

    Args:
        copies: how many in a row make a loop; 0: none ever does.
    """

    def __init__(self, copies: int) -> None:
        self._copies = copies
        periods = np.arange(1, _LONGEST_COPY + 1)
        self._last = np.full(_LONGEST_COPY, -1, dtype=np.int64)  # newest first
        self._alike = np.zeros_like(periods)  # how many of the newest tokens equal the one a period before them
        self._enough = np.maximum((copies - 1) * periods, _FEWEST_TOKENS - periods)

    def push(self, token: int) -> bool:
        """Take the next token; whether the reply now ends with a loop."""
        if not self._copies:
            return False
        self._alike = np.where(self._last == token, self._alike + 1, 0)
        self._last = np.roll(self._last, 1)
        self._last[0] = token
        return bool((self._alike >= self._enough).any())
