"""Layers that change little keep little (SqueezeAttention, arXiv 2404.04793)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from ..placement import State, Text
from .h2o import H2OOptions, H2OPlacement


@dataclass(frozen=True, kw_only=True, slots=True)
class SqueezeOptions(H2OOptions):
    """Settings of `squeeze`."""

    p: float = 0.35
    """Share of its budget that a layer of the kind that changes least is left with."""

    def __post_init__(self) -> None:
        H2OOptions.__post_init__(self)
        if not 0 < self.p <= 1:
            raise ValueError(f"p is a share above 0, up to 1, not {self.p}")


class SqueezePlacement(H2OPlacement):
    """Idea   a layer that hardly turns its hidden states does little with what it attends to. Sort the layers into
             three kinds by the cosine of hidden states before and after them, mean over a prompt; those that change
             least give up most of their budget to the others. Inside a layer heavy hitters stay (one of the published
             three).
    For    deep models, some of whose layers change little.
    State  that of `h2o`, and the sum and the number of the cosines.
    Cost   that of `h2o`, and a product of hidden states in each layer and span of a prompt.
    Differs  hidden states are compared around the whole layer (published: around its attention, before its MLP). Layers
             are sorted by the best three kinds there are (published: k-means from a random start). What others could
             not use, since the text is no longer, comes back. p is 0.3 to 0.4 in the paper, by model. Of a prompt from
             the store nothing is compared: without any cosines all layers are equal.
    """

    name = "squeeze"
    Options = SqueezeOptions
    compares = True

    def start(self, keys: Tensor, values: Tensor) -> State:
        return {"cosine": torch.zeros(2, dtype=torch.float32)}

    def compare(self, state: State, cosines: Tensor) -> State:
        more = torch.stack([cosines.sum(), torch.ones_like(cosines).sum()])
        return {"cosine": state["cosine"] + more}

    def wish(self, state: State, text: Text) -> Tensor:
        """Mean cosine and the number of tokens."""
        total, count = state["cosine"].tolist()
        return torch.tensor([total / max(1.0, count), text.positions.shape[1]])

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        cosines, counts = torch.stack(list(wishes)).double().T.tolist()
        still = most_alike(cosines)
        if not 0 < len(still) < len(wishes):
            return [budget] * len(wishes)
        total, others = budget * len(wishes), len(wishes) - len(still)
        given = (total - int(self.options.p * budget) * len(still)) // others
        given = min(given, max(budget, int(max(counts))))
        rest = (total - given * others) // len(still)
        return [rest if layer in still else given for layer in range(len(wishes))]


def most_alike(values: Sequence[float]) -> set[int]:
    """The places of the highest of three groups, those with the least squared distances from their means."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    groups = min(3, len(set(values)))
    if groups < 2:
        return set()

    def spread(some: list[int]) -> float:
        mean = sum(values[place] for place in some) / len(some)
        return sum((values[place] - mean) ** 2 for place in some)

    def cost(cuts: tuple[int, ...]) -> float:
        bounds = [0, *cuts, len(order)]
        return sum(spread(order[a:b]) for a, b in pairwise(bounds))

    best = min(combinations(range(1, len(order)), groups - 1), key=cost)
    return set(order[best[-1] :])
