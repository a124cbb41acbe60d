"""What a task makes: one context, maybe some turns about it, one question, and what a right reply must contain."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..texts import Texts
from .fit import Fit


class Turn(NamedTuple):
    """An earlier exchange of a conversation."""

    user: str
    reply: str
    """Begins with a space where one belongs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One context with one question. Nothing in `context` tells which question will come."""

    context: str
    """Read before any question exists: the task's instruction, solved examples if it has them, the haystack."""
    question: str
    """The user's words after it."""
    prefix: str
    """What the reply begins with: RULER's answer prefix, or nothing."""
    references: tuple[str, ...]
    """What the scorer looks for in the reply."""
    gold: str
    """One complete correct reply after `prefix`, for teacher forcing; begins with a space where one belongs."""
    depth: float | None = None
    """Where in the context the answer stands, 0 (first) to 1 (last character), if it stands in one place."""
    earlier: tuple[Turn, ...] = ()
    """What was said between the context and the question."""

    def __post_init__(self) -> None:
        if not self.references or not all(reference.strip() for reference in self.references):
            raise ValueError(f"references must be there and not blank, got {self.references!r}")

    @property
    def history(self) -> str:
        """All that is read before the question."""
        return "".join([self.context, *(f"\n{turn.user}{turn.reply}" for turn in self.earlier)])

    @property
    def prompt(self) -> str:
        """All that is read before the reply: what a length limit counts."""
        return f"{self.history}\n{self.question}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Task:
    """A name in reports, and how its samples are made and scored."""

    name: str
    build: Callable[[random.Random, Texts, Fit], Sample]
    """Depends on its arguments only. Raises ValueError if the length is too short for the task."""
    max_new_tokens: int
    score: Callable[[str, tuple[str, ...]], float]
    """(reply after the prefix, references) -> 0..1"""
    intensive: bool = False
    """Context-intensive: the reply needs many places of the context, or all of it."""
    turns: int = 0
    """How many earlier turns its samples have: a template puts words around each."""


def longest(build: Callable[[int], Sample], fit: Fit, *, smallest: int = 1, limit: int | None = None) -> Sample:
    """The sample of most units whose prompt fits. `build(n)` must be a function of n alone."""
    return build(fit.largest(lambda units: build(units).prompt, smallest=smallest, limit=limit))


def depth_of(needle: str, context: str) -> float:
    return context.index(needle) / len(context)
