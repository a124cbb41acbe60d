"""The results of a generation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..api.figures import per_second

REPEATS = "the reply repeated itself and was ended"
"""The words for people where `finish_reason` is `repeats`."""


@dataclass(slots=True)
class Usage:
    """Token counts. docs/FIGURES.md defines each."""

    prompt_tokens: int = 0
    """All tokens that the reply could look back on: the conversation so far and the message."""
    cached_tokens: int = 0
    """Prompt tokens that the store had: read by an earlier conversation, or restored with a session."""
    completion_tokens: int = 0
    """Tokens that were generated, including one that ends the reply."""


@dataclass(slots=True)
class Timings:
    """Times and counts of one reply, under llama.cpp's names. docs/FIGURES.md defines each. A step makes one token out
    of the one before; the first token comes out of the prompt."""

    prompt_n: int = 0
    """Tokens of the prompt that were computed for this reply, in `prompt_ms`."""
    prompt_ms: float = 0.0
    cache_n: int = 0
    """The other tokens of the prompt, whose KV was there: from the store, or from earlier turns."""
    predicted_n: int = 0
    """Tokens that were generated: `completion_tokens`."""
    predicted_ms: float = 0.0
    """Milliseconds spent in `step_n` steps. Time in which somebody reads, or another thread has its turn at the model,
    does not count."""
    step_n: int = 0
    """Number of steps this reply took part in: one less than its tokens."""
    ttft_ms: float | None = None
    """Milliseconds that the person waited for the first token, from the request on; None if there is none yet."""

    @property
    def steps_per_second(self) -> float | None:
        """Steps divided by the seconds spent in them; None if there was no step."""
        return per_second(self.step_n, self.predicted_ms / 1000)

    @property
    def predicted_per_second(self) -> float:
        """`steps_per_second` as a number that can always be formatted: 0.0 if there was no step."""
        return self.steps_per_second or 0.0

    def note_first(self, waited_s: float) -> None:
        """Note the first token, for which the person waited `waited_s` seconds."""
        self.predicted_n, self.ttft_ms = 1, 1000 * waited_s

    def note_step(self, seconds: float) -> None:
        """Note another token, whose step took `seconds`."""
        self.predicted_n += 1
        self.step_n += 1
        self.predicted_ms += 1000 * seconds

    def as_dict(self) -> dict[str, Any]:
        """All fields and the rate as a dict for JSON, which has a null where there is no rate."""
        return {**asdict(self), "predicted_per_second": self.steps_per_second}


@dataclass(slots=True)
class Reply:
    """A finished (or interrupted) reply."""

    text: str = ""
    tokens: list[int] = field(default_factory=list, repr=False)
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    finish_reason: str = "interrupted"
    """`eos`, `stop` (a stop string), `length` (max_new_tokens or the model's window), `repeats` (it said the same
    over and over: `GenerationConfig.max_repeats`) or `interrupted`."""

    def note_prompt(self, tokens: int, cached: int, computed: int, seconds: float) -> None:
        """Note that the prompt is read: its `tokens`, how many came from the store (`cached`), and how many were
        `computed` in `seconds`."""
        self.usage.prompt_tokens, self.usage.cached_tokens = tokens, cached
        self.timings.prompt_n, self.timings.prompt_ms = computed, 1000 * seconds
        self.timings.cache_n = tokens - computed

    def __str__(self) -> str:
        return self.text
