"""Contestants, whose decode is timed over two turns of one conversation.

    first turn    the context      --> time to the first token, then `steps` timed steps
    second turn   a further prompt --> time to the first token, then a quarter as many timed steps

    steps         4 untimed | 16 timed | the others' turn | 1 untimed | 16 timed | ...

Contestants take turns in stints, not step by step: between two steps of one stint nobody else works, so what a
contestant does in the background (prefetching) overlaps with its own steps only, and disturbs its own only.

All are given the same tokens, whatever they would have chosen themselves: nobody's steps become easier by
repeating themselves. The likeliest token is computed all the same: without it there is no next step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..api.figures import Stopwatch, per_second

WARM_UP = 4
"""Steps at the beginning of a turn that are not timed."""
RESUME = 1
"""Steps at the beginning of a later stint that are not timed: bytes fetched while others worked came for nothing."""
STINT = 16
"""The number of timed steps in a row."""


class LeftOutError(Exception):
    """A baseline cannot take part here. The message says why, for the result."""


@dataclass(slots=True)
class TimedTurn:
    """The times of one turn of a batch, in seconds."""

    batch: int
    ttft_s: float | None = None
    """Seconds until every sequence of the batch has its first token; None: the context was not prefilled."""
    step_s: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers that the contestant counted over the timed steps."""

    @property
    def decode_s(self) -> float:
        return sum(self.step_s)

    def result(self) -> dict[str, Any]:
        return {
            "ttft_s": self.ttft_s,
            "steps": len(self.step_s),
            "tpot_ms_p50": _percentile_ms(self.step_s, 50),
            "tpot_ms_p90": _percentile_ms(self.step_s, 90),
            "tokens_per_s": per_second(self.batch * len(self.step_s), self.decode_s),
            **self.facts,
        }


def _percentile_ms(seconds: list[float], percent: float) -> float | None:
    """A percentile of times in seconds, in milliseconds. One time has a middle and no spread: None."""
    if not seconds or (len(seconds) == 1 and percent != 50):
        return None
    return 1000 * float(np.percentile(seconds, percent))


def stint_sizes(steps: int) -> list[tuple[int, int]]:
    """The numbers of all and of untimed steps of each stint, for `steps` timed ones."""
    timed = [min(STINT, steps - start) for start in range(0, steps, STINT)]
    untimed = [WARM_UP] + [RESUME] * (len(timed) - 1)
    return [(n + before, before) for n, before in zip(timed, untimed, strict=True)]


def num_steps(steps: int) -> int:
    """The number of all steps of a turn with `steps` timed ones."""
    return sum(size for size, _ in stint_sizes(steps))


class Contestant(ABC):
    """Decodes a batch, step by step. The subclass's constructor does what need not be timed.

    Args:
        settings: settings that tell it from others of its name, for the result.
    """

    name: str

    def __init__(self, batch: int, settings: dict[str, Any]) -> None:
        self.batch, self.settings = batch, settings
        self.turns: list[TimedTurn] = []

    def begin_turn(self, prompts: np.ndarray, *, random_kv: bool) -> None:
        """Append `prompts` `[batch, tokens]`; timed, unless they become random KV."""
        turn = TimedTurn(self.batch)
        self.turns.append(turn)
        if random_kv:
            self.fill(prompts)
            return
        with Stopwatch() as watch:
            self.extend(prompts)
        turn.ttft_s = watch.seconds

    def take_stint(self, steps: list[list[int]], untimed: int) -> None:
        """Decode `steps`, each a token for every sequence; the first `untimed` of them count in nobody's times."""
        times = self.turns[-1].step_s
        for tokens in steps[:untimed]:
            self.decode(tokens)
        self.on_stint()
        for tokens in steps[untimed:]:
            with Stopwatch() as step:
                self.decode(tokens)
            times.append(step.seconds)
            self.on_step(step.began)
        self.on_stint_end()

    def end_turn(self) -> None:
        self.turns[-1].facts = self.facts(self.turns[-1])

    def result(self) -> dict[str, Any]:
        first, second = self.turns
        return {
            "name": self.name, **self.settings, "first_turn": first.result(), "second_turn": second.result(),
            **self.summary(),
        }  # fmt: skip

    @abstractmethod
    def extend(self, prompts: np.ndarray) -> None:
        """Append prompt tokens `[batch, n]`, until the next token of each sequence is known."""

    @abstractmethod
    def fill(self, prompts: np.ndarray) -> None:
        """Append random keys and values for the tokens instead. Raises LeftOutError where that cannot be."""

    @abstractmethod
    def decode(self, tokens: list[int]) -> None:
        """Take one step, until the next token of each sequence is known."""

    def on_stint(self) -> None:
        """Called before the first timed step of a stint."""
        return

    def on_step(self, began: float) -> None:
        """Called after each timed step, which began then by the clock, outside its time."""
        return

    def on_stint_end(self) -> None:
        """Called after the last timed step of a stint."""
        return

    def facts(self, turn: TimedTurn) -> dict[str, Any]:
        """The numbers counted over a turn's timed steps."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Facts that hold for all turns."""
        return {}

    def close(self) -> None:
        """Give memory back."""
        return
