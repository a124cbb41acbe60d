"""How far reading a prompt is, for whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prefill is. `processed` counts whole-model tokens; both include `cached` ones."""

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
