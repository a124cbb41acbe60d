"""Budgets that fall from layer to layer (PyramidKV, arXiv 2406.02069)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import State, Text
from .snapkv import SnapKVOptions, SnapKVPlacement


@dataclass(frozen=True, kw_only=True, slots=True)
class PyramidKVOptions(SnapKVOptions):
    """Settings of `pyramidkv`."""

    beta: float = 20.0
    """The last layer has this part of the mean: the higher, the steeper; 1: all layers have the same."""

    def __post_init__(self) -> None:
        SnapKVOptions.__post_init__(self)
        if not 1 <= self.beta <= 1000:
            raise ValueError(f"beta is 1 to 1000, not {self.beta}")


class PyramidKVPlacement(SnapKVPlacement):
    """Idea   lower layers attend widely, higher ones to a few tokens: of a mean budget B, beside what stays in any
             case, the first layer has 2B - B/beta, the last B/beta, and those between fall linearly. Tokens are chosen
             as by `snapkv`.
    For    tight budgets: the first layers keep more, whatever the text.
    State  as `snapkv`.
    Cost   as `snapkv`.
    Differs  as `snapkv`. A text shorter than the first layer's budget makes the slope flatter, as in the published
             code. Layers that are no part of the budget (sliding, recurrent) are no steps of the slope.
    """

    name = "pyramidkv"
    Options = PyramidKVOptions

    def wish(self, state: State, text: Text) -> Tensor:
        """How many tokens there are, `[1]`."""
        return torch.tensor([text.positions.shape[1]], dtype=torch.float32)

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        least = self.least(budget)
        mean = max(0, budget - least)
        most = max(int(wish) for wish in wishes) - least
        first = min(mean * (2 - 1 / self.options.beta), max(mean, most))
        step = 2 * (first - mean) / max(1, len(wishes) - 1)
        return [least + int(first - i * step) for i in range(len(wishes))] if len(wishes) > 1 else [budget]
