"""The product of a task: one context, maybe some exchanges about it, one question, and what a right reply must
contain."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..texts import Texts
from .fit import Fit


class Exchange(NamedTuple):
    """An earlier exchange of a conversation: a user's words and the reply."""

    user: str
    reply: str
    """The reply; it begins with a space where one belongs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One context with one question. Nothing in `context` tells which question will come."""

    context: str
    """Read before any question exists: the task's instruction, solved examples if it has them, the haystack."""
    question: str
    """The user's words after the context."""
    prefix: str
    """The text that the reply begins with: RULER's answer prefix, or nothing."""
    references: tuple[str, ...]
    """The texts that the scorer looks for in the reply."""
    gold: str
    """One complete correct reply after `prefix`, for teacher forcing; begins with a space where one belongs."""
    depth: float | None = None
    """The place of the answer in the context, from 0 (first) to 1 (last character), if it stands in one place."""
    earlier: tuple[Exchange, ...] = ()
    """Exchanges between the context and the question."""

    def __post_init__(self) -> None:
        if not self.references or not all(reference.strip() for reference in self.references):
            raise ValueError(f"references must be there and not blank, got {self.references!r}")

    @property
    def history(self) -> str:
        """All text that is read before the question."""
        return "".join([self.context, *(f"\n{turn.user}{turn.reply}" for turn in self.earlier)])

    @property
    def prompt(self) -> str:
        """All text that is read before the reply, which a length limit counts."""
        return f"{self.history}\n{self.question}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Task:
    """A name in reports, and how its samples are made and scored."""

    name: str
    build: Callable[[random.Random, Texts, Fit], Sample]
    """Makes a sample that depends on the arguments only. Raises ValueError if the length is too short for the task."""
    max_new_tokens: int
    score: Callable[[str, tuple[str, ...]], float]
    """Scores (reply after the prefix, references) from 0 to 1."""
    intensive: bool = False
    """True if the reply needs many places of the context, or all of it."""
    turns: int = 0
    """The number of earlier exchanges in its samples: a template puts words around each."""


def longest(build: Callable[[int], Sample], fit: Fit, *, smallest: int = 1, limit: int | None = None) -> Sample:
    """Make the sample of most items whose prompt fits. `build(n)` must be a function of n alone."""
    return build(fit.largest(lambda items: build(items).prompt, smallest=smallest, limit=limit))


def depth_of(needle: str, context: str) -> float:
    return context.index(needle) / len(context)
