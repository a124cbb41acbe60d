"""All for the heads that search, a mean for the others (RazorAttention, arXiv 2407.15891)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..params import IndexParams
from ..placement import Facts, Placement, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class RazorOptions:
    """Settings of `razor`."""

    echo: float = 0.01
    """Share of the model's heads that keep all for looking at what was like the last token."""
    induction: float = 0.14
    """Share of the heads that keep all for looking at what came behind that."""

    def __post_init__(self) -> None:
        for name in ("echo", "induction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")


class RazorPlacement(Placement):
    """Idea   few heads look far back, and they are the model's, not the text's: given random tokens again and again
             they look at where the last one stood before, or behind that. They keep all. The others keep sinks and a
             window, and of what they let go of one key and one value, the mean, which counts for all of it in the
             softmax.
    State  for each KV head the sums of the keys and values that went, and their number.
    For    many questions to one text, by models whose heads divide the work.
    Cost   none for each token; one pass of 2,048 random tokens when the model is loaded; a product for each head and
             step.
    Differs  a KV head is judged by the best of its query heads, over all layers. There is a budget: heads that search
             take no more than half of it, the best first, and the others' windows are what is left (published: a fifth
             of the text, and at least 4,000 tokens). Random tokens are 512, four times (published: 2,500, four times).
             Formulas are from descriptions of the paper and others' code; the paper itself could not be checked.
    """

    name = "razor"
    Options = RazorOptions
    prunes = True
    searches = True

    def __init__(self, params: IndexParams, layer: int, options: Any, facts: Facts | None = None) -> None:
        super().__init__(params, layer, options, facts)
        known = self.facts.looks_back
        self._heads = sum(scores.shape[1] for scores in known.values())
        order = searching(torch.cat(list(known.values()), 1), options) if known else []
        first = sum(scores.shape[1] for number, scores in known.items() if number < layer)
        self._ranks = {head - first: rank for rank, head in enumerate(order)}
        """Own and other heads that search, counted from this layer's first, and their ranks in the whole model."""

    def start(self, keys: Tensor, values: Tensor) -> State:
        key, value = keys.float().sum(1), values.float().sum(1)
        return {"key": key, "value": value, "count": key.new_zeros(len(key))}

    def scores(self, state: State, text: Text) -> Tensor:
        return text.positions.float()

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        at, heads = text.positions, max(1, self._heads)
        end = int(at.max()) + 1
        total = min(budget, end) * heads
        count = min(len(self._ranks), total // (2 * end))
        rest = (total - count * end) // (heads - count)
        is_whole = torch.tensor([self._ranks.get(head, count) < count for head in range(len(at))], device=at.device)
        near = at >= end - max(self.params.local, rest - self.params.sink)
        return (at >= 0) & (near | (at < self.params.sink) | is_whole.unsqueeze(1))

    def leave(self, state: State, text: Text, kept: Tensor) -> State:
        gone = ((text.positions >= 0) & ~kept).float()
        if not bool(gone.any()):
            return {}
        key, value = state["key"].clone(), state["value"].clone()
        for columns, keys, values in text.blocks():
            key += (keys * gone[:, columns].unsqueeze(2)).sum(1)
            value += (values * gone[:, columns].unsqueeze(2)).sum(1)
        return {"key": key, "value": value, "count": state["count"] + gone.sum(1)}

    def rest(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        count = state["count"].clamp(min=0)
        each = count.clamp(min=1).unsqueeze(1)
        return state["key"] / each, state["value"] / each, count


def searching(scores: Tensor, options: RazorOptions) -> list[int]:
    """The heads that search, best first, by echo and induction scores `[2, heads]`."""
    found: dict[int, None] = {}
    for score, share in zip(scores, (options.echo, options.induction), strict=True):
        order = score.sort(descending=True, stable=True).indices[: math.ceil(share * len(score))]
        found.update(dict.fromkeys(order.tolist()))
    return list(found)
