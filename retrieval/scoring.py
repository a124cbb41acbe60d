"""How an index chooses, for whoever cannot call `select`: compiled loops (`Scoring`), and decode that never waits for
the device (`Ranking`).

Whatever is chosen by one of these is what `select` chooses, up to the rounding of scores.

Shapes  G KV heads, R query heads each, D head dim, n units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor


class Counts(NamedTuple):
    """How many units are read for a budget."""

    units: int
    sink: int
    """The first ones, whatever their scores."""
    local: int
    """The last ones, whatever theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Those units are read that have the highest mean, over query heads, of their scores' softmax, and some in any
    case: `Counts`."""

    unit: int
    """Tokens per unit."""
    num_units: int
    counts: Callable[[int], Counts]
    """For a budget in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundScoring(Scoring):
    """Scores are sum_d max(q_d lo_d, q_d hi_d)."""

    bounds: Tensor
    """fp32 or bf16 `[G, n, 2 D]`, a unit's largest keys, then its smallest ones; heads may lie apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeScoring(Scoring):
    """Scores are q . anchor + sum_m (q . basis_m) . codebook_m[code_m]."""

    codes: Tensor
    """uint8 `[G, n, M]`; heads may lie apart."""
    anchors: Tensor
    """bf16 `[G, segments, D]`; heads may lie apart."""
    segment: int
    """Units per anchor."""
    basis: Tensor
    """fp32 `[G, W, D]`, contiguous."""
    codebooks: Tensor
    """fp32 `[G, M, W / M, 256]`, contiguous."""


Number = TypeVar("Number", int, Tensor)


class Rebuilt(NamedTuple):
    """Units that are read without their keys."""

    ids: Tensor
    """int64 `[G, most]`, ascending and unique as far as they count."""
    counts: Tensor
    """int64 `[G]`: the first ids of each head that count."""
    keys: Tensor
    """fp32 `[G, most * unit, D]`, of their tokens, rotated."""


class Split(Protocol):
    """How a budget is divided."""

    def __call__(self, total: Number, wanted: Number) -> tuple[Number, Number]:
        """Of the number of units there are, and that of units to be read: how many of these the ranking chooses, and
        how many units are rebuilt. All are ints, or int64 `[1]`. Neither falls where more of many units are wanted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilding:
    """Besides what a ranking chooses units are read whose keys follow from the state: their values alone are moved."""

    unit: int
    """Tokens per unit."""
    split: Split
    choose: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Rebuilt]
    """Of q and the number of units, as in `Ranking.scores`, the ids int64 `[G, n]` and counts int64 `[G]` of units that
    the ranking has chosen, the number of units to rebuild int64 `[1]`, and the most that this may be."""

    def most(self, total: int, wanted: int) -> tuple[int, int]:
        """Units that the ranking chooses, and that are rebuilt, of `total` or more while at most `wanted` are to be
        read."""
        exact, rebuilt = self.split(max(total, wanted + 1), wanted)
        return (wanted if total <= wanted else exact), rebuilt


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The first units and the last ones are read, and of the others those with the highest scores; among equal ones the
    first. Good until the state changes otherwise than by `append` within the room it has.

    Nothing waits for the device: how many units there are is known there alone. The score of a unit that exists does
    not depend on the room, to the bit: a sequence that was forked or loaded has other room.
    """

    unit: int
    """Tokens per unit."""
    sink: int
    """The first units, which are read whatever their scores."""
    local: int
    """The last units, which are read whatever theirs."""
    room: int
    """Units that the state can hold without being moved."""
    scores: Callable[[Tensor, Tensor], Tensor]
    """Of q fp32 `[G, R, D]`, rotated and scaled, and the number of units int64 `[1]` on q's device: fp32 `[G, room]`.
    Columns from that number on may hold anything. A caller may cut columns off at the end as long as units fit."""
    reads: tuple[Tensor, ...]
    """Every tensor that is read by `scores`, and by `rebuilding`: who captured the call can see whether they still lie
    where they lay."""
    rebuilding: Rebuilding | None = None
    """What is read besides, of the same budget; None: nothing."""
