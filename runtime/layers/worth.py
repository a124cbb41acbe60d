"""Whether guessing ahead pays."""

from __future__ import annotations

import math
import statistics
from collections import deque

_LEARNING = 12
"""Steps that go in turn with and without, at first."""
_PROBE = 48
"""Then one in so many goes the other way."""
_PAIRS = 12
"""Latest pairs of steps that the answer comes from."""


class Worth:
    """Guessing pays if steps with it are shorter than their neighbours without.

    Measured, not known: it depends on the links, on what computes, and on how fast attention wanders. Neighbours,
    since steps become longer as the context does; the median, since other work on the machine makes some steps long.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._last: tuple[bool, float] | None = None
        self._gains: deque[float] = deque(maxlen=_PAIRS)
        """By what factor, as a logarithm, the one of two neighbours without was longer."""

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
        """How long a step took."""
        if self._last is not None and self._last[0] != guessed:
            gain = math.log(self._last[1] / seconds)
            self._gains.append(gain if guessed else -gain)
        self._last = guessed, seconds
