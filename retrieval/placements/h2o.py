"""Heavy hitters (H2O, arXiv 2306.14048): tokens that have got much attention so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..placement import EVERY, Change, Placement, Rows, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class H2OOptions:
    """Settings of `h2o`."""

    recent: float = 0.5
    """Share of the budget for the last tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent is a share from 0 to 1, not {self.recent}")


class H2OPlacement(Placement):
    """Idea   a small part of the tokens gets most of the attention, from early on: add up what every query gives to
             each token, and let go of those with the least.
    For    long replies, which it keeps to the budget as well.
    State  one number for each kept token and KV head: the attention it got.
    Cost   a prompt's attention weights once more, in blocks; at each page of a reply, those of its 16 queries.
    Differs  a reply is pruned a page at a time (published: a token at a time). The query heads of a KV head are judged
             by their mean. Sinks stay whatever they got.
    """

    name = "h2o"
    Options: ClassVar[type[Any]] = H2OOptions
    columns: ClassVar[tuple[str, ...]] = ("mass",)
    prunes = True

    @property
    def rows(self) -> int:
        return EVERY

    def observe(self, state: State, rows: Rows) -> State:
        return self._add(state, rows)

    def _add(self, state: State, rows: Rows, change: Change | None = None) -> State:
        mass = state["mass"].clone()
        for _, columns, weights in rows.weights(change):
            mass[:, columns] += weights.mean(1).sum(1)
        return {"mass": mass}

    def scores(self, state: State, text: Text) -> Tensor:
        return state["mass"]

    def recent(self, budget: int) -> int:
        return int(self.options.recent * budget)
