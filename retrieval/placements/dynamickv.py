"""One choice over all layers says how many tokens each may keep (DynamicKV, arXiv 2412.14838)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import State, Text
from .snapkv import SnapKVOptions, SnapKVPlacement


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicKVOptions(SnapKVOptions):
    """Settings of `dynamickv`."""

    window: int = 8
    pool: int = 7
    most: float = 10.0
    """A layer has at most so many times the mean."""

    def __post_init__(self) -> None:
        SnapKVOptions.__post_init__(self)
        if not 1 <= self.most <= 1000:
            raise ValueError(f"most is 1 to 1000, not {self.most}")


class DynamicKVPlacement(SnapKVPlacement):
    """Idea   which layers need many tokens depends on the task: put the votes of all layers and heads side by side,
             take as many of the highest as all layers may keep together, and count how many are of each layer. That is
             its budget. Within it, tokens are chosen as by `snapkv`.
    For    tasks of many kinds: what a prompt asks for decides which layers keep more.
    State  as `snapkv`.
    Cost   as `snapkv`; when budgets are divided, the scores of all layers at once: 4 bytes for each token, KV head and
           layer.
    Differs  as `snapkv`. Layers are compared once, at a prompt's end (published code: each 4 layers, earlier ones give
             tokens up each time; the last comparison decides). What stays in any case is no part of the comparison.
    """

    name = "dynamickv"
    Options = DynamicKVOptions

    def wish(self, state: State, text: Text) -> Tensor:
        """The scores `[G, m]` of all tokens that may go."""
        stays = self.forced(text, 0) | (text.positions < 0)
        return self.scores(state, text).masked_fill(stays, -torch.inf)

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        least = self.least(budget)
        mean = max(0, budget - least)
        best = [wish.topk(min(int(mean * self.options.most), wish.shape[1]), 1).values.flatten() for wish in wishes]
        scores, heads = torch.cat(best), [len(wish) for wish in wishes]
        highest = scores.topk(min(mean * sum(heads), len(scores)))
        layers = torch.arange(len(best)).repeat_interleave(torch.tensor([len(one) for one in best]))
        chosen = layers[highest.indices[highest.values > -torch.inf].cpu()]
        counts = torch.bincount(chosen, minlength=len(best)).tolist()
        return [least + count // groups for count, groups in zip(counts, heads, strict=True)]
