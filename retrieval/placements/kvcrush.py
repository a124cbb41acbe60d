"""Representatives of what is let go of (KVCrush, arXiv 2503.00022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import EVERY, Placement, Rows, State, Text

ANCHORS = ("random", "zeros", "ones", "mean", "alternate")


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCrushOptions:
    """Settings of `kvcrush`."""

    recent: float = 0.5
    """Share of the budget for the last tokens."""
    crush: float = 0.25
    """Share of the other tokens that stay which are representatives."""
    anchor: int = 0
    """What signatures are compared with: 0 random bits, 1 zeros, 2 ones, 3 the heads' majority, 4 0 and 1 in turn."""

    def __post_init__(self) -> None:
        for name in ("recent", "crush"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.anchor < len(ANCHORS):
            known = ", ".join(f"{number} {name}" for number, name in enumerate(ANCHORS))
            raise ValueError(f"anchor is one of {known}; not {self.anchor}")


class KVCrushPlacement(Placement):
    """Idea   heavy hitters leave whole kinds of tokens without anyone. Give each token a signature, one bit for each
             query head: whether it is in the upper half there. Sort the tokens that would go by how many bits differ
             from an anchor's, and let one in every so many stay for its neighbours.
    For    tight budgets, of which every kind of token should keep someone.
    State  one number for each kept token and query head: the attention it got.
    Cost   that of `h2o`, and a sort of bits for each prompt and page.
    Differs  signatures have a bit per query head (as the paper; its authors' code has one per token of a page, and
             chooses pages). All heads of a layer keep the same tokens, by the sum of what they give (as that code).
             Shares are ours, the paper's could not be checked. Sinks stay whatever they got, a reply is pruned a page
             at a time.
    """

    name = "kvcrush"
    Options = KVCrushOptions
    columns = ("mass",)
    prunes = True

    @property
    def rows(self) -> int:
        return EVERY

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        return {"mass": keys.new_zeros((*keys.shape[:2], self.facts.repeats), dtype=torch.float32)}

    def observe(self, state: State, rows: Rows) -> State:
        mass = state["mass"].clone()
        for _, columns, weights in rows.weights():
            mass[:, columns] += weights.sum(2).transpose(1, 2)
        return {"mass": mass}

    def scores(self, state: State, text: Text) -> Tensor:
        return state["mass"].sum((0, 2)).expand(len(state["mass"]), -1)

    def recent(self, budget: int) -> int:
        return int(self.options.recent * budget)

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        forced = self.forced(text, budget)
        free = (~forced[0]).nonzero()[:, 0]
        room = max(0, budget - int(forced[0].sum()))
        crushed = int(self.options.crush * min(room, len(free)))
        order = free[self.scores(state, text)[0, free].sort(descending=True, stable=True).indices]
        best, rest = order[: room - crushed], order[room - crushed :].sort().values
        distances = self._distances(state["mass"][:, free].transpose(1, 2).flatten(0, 1))
        apart = distances[torch.searchsorted(free, rest)]
        rest = rest[apart.sort(stable=True).indices]
        count = min(crushed, len(rest))
        every = torch.arange(count, device=rest.device) * len(rest) // max(1, count)
        kept = forced.clone()
        kept[:, best] = kept[:, rest[every]] = True
        return kept & (text.positions >= 0)

    def _distances(self, mass: Tensor) -> Tensor:
        """Bits of each token's signature that are not the anchor's, `[n]`, from the tokens' mass by head `[H, n]`."""
        upper = mass.sort(dim=1, descending=True, stable=True).indices[:, : mass.shape[1] // 2]
        bits = torch.zeros_like(mass, dtype=torch.bool).scatter_(1, upper, True)
        return (bits != self._anchor(bits).unsqueeze(1)).sum(0)

    def _anchor(self, bits: Tensor) -> Tensor:
        heads, kind = torch.arange(len(bits)), ANCHORS[self.options.anchor]
        if kind == "mean":
            return bits.float().mean(1) > 0.5
        if kind == "random":
            rng = torch.Generator().manual_seed(self.layer)
            anchor = torch.rand(len(bits), dtype=torch.float32, generator=rng) < 0.5
        else:
            anchor = {"zeros": heads < 0, "ones": heads >= 0, "alternate": heads % 2 == 1}[kind]
        return anchor.to(bits.device)
