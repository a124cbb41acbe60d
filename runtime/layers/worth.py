"""Whether guessing ahead pays."""

from __future__ import annotations

import math
import statistics
from collections import deque

_LEARNING = 12
"""The first steps go with and without guessing in turn: so many of them."""
_PROBE = 48
"""After that one step in so many goes the other way than the answer so far."""
_PAIRS = 12
"""The answer comes from so many pairs of neighbouring steps, the latest."""


class Worth:
    """Guessing pays if steps with it are shorter than their neighbours without.

    Measured, not known: it depends on the links, on what computes, and on how fast attention wanders. Neighbours,
    since steps become longer as the context does; the median, since other work on the machine makes some steps long.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._last: tuple[bool, float] | None = None
        self._gains: deque[float] = deque(maxlen=_PAIRS)
        """log(time without guessing / time with) of neighbouring steps; positive means guessing paid."""

    @property
    def pays(self) -> bool:
        return bool(self._gains) and statistics.median(self._gains) > 0

    def try_it(self) -> bool:
        """Whether to guess in the step that comes."""
        self._steps += 1
        if self._steps <= _LEARNING:
            return self._steps % 2 == 0
        return self.pays != (self._steps % _PROBE == 0)

    def note(self, *, guessed: bool, seconds: float) -> None:
        """Learn how long a step took, in seconds, and whether it guessed."""
        if self._last is not None and self._last[0] != guessed:
            gain = math.log(self._last[1] / seconds)
            self._gains.append(gain if guessed else -gain)
        self._last = guessed, seconds
