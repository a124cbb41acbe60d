"""The progress of reading a prompt, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a prefill, in tokens that have passed the whole model. `processed` includes the `cached` ones."""

    total: int
    cached: int
    processed: int
    elapsed_s: float

    @property
    def eta_s(self) -> float:
        """Seconds to go at the average speed so far; infinite before the first step."""
        done = self.processed - self.cached
        return self.elapsed_s * (self.total - self.processed) / done if done else float("inf")


OnProgress = Callable[[Progress], None]
