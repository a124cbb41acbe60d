"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REPEATS = "the reply repeated itself and was ended"
"""What people are told where `finish_reason` is `repeats`."""


@dataclass(slots=True)
class Usage:
    """Token counts. `prompt_tokens` includes `cached_tokens`, whose KV was already there."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Timings:
    """llama.cpp's names: `prompt_n` tokens were computed in `prompt_ms`, `cache_n` were reused."""

    prompt_n: int = 0
    prompt_ms: float = 0.0
    cache_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    ttft_ms: float = 0.0
    """From the request to the first new token."""

    @property
    def predicted_per_second(self) -> float:
        return 1000.0 * self.predicted_n / self.predicted_ms if self.predicted_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "predicted_per_second": self.predicted_per_second}


@dataclass(slots=True)
class Reply:
    """A finished (or interrupted) reply."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    finish_reason: str = "interrupted"
    """`eos`, `stop` (a stop string), `length` (max_new_tokens or the model's window), `repeats` (it said the same
    over and over: `GenerationConfig.max_repeats`) or `interrupted`."""

    def __str__(self) -> str:
        return self.text
