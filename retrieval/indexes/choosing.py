"""Indexes of which a few layers read everything and choose for the layers after them.

A layer that reads everything knows each token's share of its attention exactly, and what matters there matters in the
layers after it as well. None of the layers has a state.

Shapes  q [G, R, D]   weights fp32 [G, R, n], of the sealed tokens
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ..index import Part, Selection, StatelessIndex
from ..reading import Reader, Run, read_weighing


class ChoosingIndex(StatelessIndex):
    """What such indexes have in common: all but which layers read everything, and how one of them chooses."""

    @property
    @abstractmethod
    def reading_all(self) -> set[int]:
        """Which layers read everything, counted among those that have an index. Raises ValueError for settings that
        are not for so many layers."""

    @abstractmethod
    def choose(self, weights: Tensor, budget: int, rounds: Sequence[int]) -> Selection:
        """Choose for the layers that follow, by the weights of the tokens and where rounds of the dialogue begin;
        otherwise as `select`."""

    @property
    def part(self) -> Part:
        """A layer that reads everything chooses, unless the next one does so as well."""
        place, reading_all = self.layer.place, self.reading_all
        if place not in reading_all:
            return Part.FOLLOWS
        return Part.ALONE if place + 1 in reading_all and place + 1 < self.layer.count else Part.CHOOSES

    def select(self, state: None, q: Tensor, num_tokens: int, budget: int) -> Selection:
        return self.everything(q, num_tokens)

    def hand_on(
        self, state: None, q: Tensor, num_tokens: int, budget: int, reader: Reader, tail: Run, scale: float,
        rounds: Sequence[int],
    ) -> tuple[Tensor, Tensor, Selection]:  # fmt: skip
        everything = self.everything(q, num_tokens)
        out, lse, weights = read_weighing(q, everything.ids, everything.unit, reader, tail, scale)
        return out, lse, self.choose(weights, budget, rounds)


def scaled(place: int, of: int, count: int) -> int:
    """The layer of `count` that is as deep as the published one, `place` of `of`."""
    return round(place * count / of)
