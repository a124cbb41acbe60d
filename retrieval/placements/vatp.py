"""Attention times value (VATP, arXiv 2406.12335): what a token adds is its weight times its value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..placement import State, Text
from .h2o import H2OOptions, H2OPlacement


@dataclass(frozen=True, kw_only=True, slots=True)
class VATPOptions(H2OOptions):
    """Settings of `vatp`."""

    first: int = 20
    """The first tokens stay: they get much attention, and their values are small."""

    def __post_init__(self) -> None:
        H2OOptions.__post_init__(self)
        if not 0 <= self.first <= 1024:
            raise ValueError(f"first is 0 to 1024 tokens, not {self.first}")


class VATPPlacement(H2OPlacement):
    """Idea   attention adds up values by their weights, so a token with a small value is no loss however much attention
             it gets: score it by the attention that it got times the sum of its value's magnitudes.
    For    as `h2o`, where tokens with small values get much attention.
    State  two numbers for each kept token and KV head: the attention it got, and its value's L1 norm.
    Cost   as `h2o`.
    Differs  as `h2o`. The published code has the same factor for Scissorhands' scores, too; that is not here. There
             `first` tokens have the highest score at the first prompt only; here they stay.
    """

    name = "vatp"
    Options = VATPOptions
    columns = ("mass", "value")

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        return {**super().enter(keys, values, positions), "value": values.float().abs().sum(-1)}

    def scores(self, state: State, text: Text) -> Tensor:
        return state["mass"] * state["value"]

    def forced(self, text: Text, budget: int) -> Tensor:
        first: int = self.options.first
        return super().forced(text, budget) | (text.positions >= 0) & (text.positions < first)
