"""Short keys (L2 norm, arXiv 2406.11430): tokens whose keys are short get much attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import Placement, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class L2NormOptions:
    """Settings of `l2norm`."""

    skip: int = 2
    """The model's first layers, which keep all that they may: there short keys mean nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.skip <= 1024:
            raise ValueError(f"skip is 0 to 1024 layers, not {self.skip}")


class L2NormPlacement(Placement):
    """Idea   in most layers a key's length and the attention that it gets go against each other, whatever the query:
             keep the shortest keys. No attention is looked at.
    For    prompts whose questions are not known yet; it costs next to nothing.
    State  one number for each kept token and KV head: its key's length.
    Cost   a norm for each new key, and nothing else.
    Differs  the first layers keep all (as published), but out of the same total, so that methods compare: the others
             keep that much less, and the first ones no more than half of the total. A reply is pruned a page at a
             time. Sinks and the local window stay (the published code has neither).
    """

    name = "l2norm"
    Options = L2NormOptions
    columns = ("length",)
    prunes = True

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        return {"length": keys.float().norm(dim=-1)}

    def scores(self, state: State, text: Text) -> Tensor:
        return -state["length"]

    def wish(self, state: State, text: Text) -> Tensor:
        """Tokens, all of which a layer that is skipped wants."""
        return torch.tensor(text.positions.shape[1] if self.layer < self.options.skip else 0)

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        first, total = sum(bool(wish) for wish in wishes), budget * len(wishes)
        if first in (0, len(wishes)):
            return [budget] * len(wishes)
        most = max(budget, total // (2 * first))
        given = [min(int(wish), most) for wish in wishes]
        rest = (total - sum(given)) // (len(wishes) - first)
        return [given if wish else rest for given, wish in zip(given, wishes, strict=True)]
