"""The options of a run of a suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

QUESTIONS = ("sparse", "exact", "prompt")
"""How a question is read: the way replies are, through the index; exactly, as a chat reads a user's words; or as a part
of the context's prompt, as methods are often published."""


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Settings shared by the suites that read text."""

    ctx: int
    """Tokens of a context."""
    samples: int
    seed: int = 0
    tasks: str | None = None
    """Comma-separated task names; None: all."""
    question: str = "sparse"
    """One of `QUESTIONS`. Of a conversation's turns `prompt` has the first in it; the others are read exactly."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is at least 1, not {self.samples}")
        if self.question not in QUESTIONS:
            raise ValueError(f"question is one of {', '.join(QUESTIONS)}; not {self.question!r}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed is a whole number from 0 to 2**63 - 1, not {self.seed}")
        if self.ctx < 512:
            raise ValueError(f"ctx is at least 512 tokens, not {self.ctx}: less has nothing to leave unread")


class Ticker(Protocol):
    """Is told how much there is to do, and what is being done."""

    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None: ...
