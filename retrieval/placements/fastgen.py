"""Each head gets the cheapest way to keep that serves it (FastGen, arXiv 2310.01801)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import PUNCTUATION, SPECIAL, Placement, Rows, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class FastGenOptions:
    """Settings of `fastgen`."""

    recover: float = 0.9
    """Share of the attention that a way to keep must cover to serve a head."""
    heavy: float = 0.3
    """Share of the text that heavy hitters are."""
    window: float = 0.3
    """Share of the text that the local window is."""
    queries: int = 64
    """The last queries of a prompt, by which heads are told apart."""

    def __post_init__(self) -> None:
        for name in ("recover", "heavy", "window"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share above 0, up to 1, not {getattr(self, name)}")
        if not 1 <= self.queries <= 1024:
            raise ValueError(f"queries is 1 to 1024 of them, not {self.queries}")


class FastGenPlacement(Placement):
    """Idea   heads differ: some look at special tokens alone, some at punctuation, too, or at heavy hitters, or at what
             is near, each a way to keep that holds the ones before it. Look once, at a prompt's end, how much of its
             attention each way would cover, and give each head the first that covers enough; else all stays.
    State  for each kept token the attention it got from the last queries, by KV head, and its class.
    For    models some of whose heads look at separators or sinks alone, and a budget near half of a text.
    Cost   attention weights of `queries` queries, once for each prompt; the tokenizer's words, once for each model.
    Differs  there is a budget, for a layer's heads together: `recover` is lowered until their ways fit, and what is
             left then goes to the tokens with most attention, in whatever head. (Published: as many as that takes,
             about half of a text; a budget far below has room for classes and heavy hitters alone.) Heads are judged
             by the last queries (published: by all of the prompt's), query heads of a KV head by their mean. All of a
             reply is kept (published: each head goes on in its way). Punctuation is ASCII's. Sinks and the local window
             stay in every way.
    """

    name = "fastgen"
    Options = FastGenOptions
    columns = ("mass", "kind")
    reads = True

    @property
    def rows(self) -> int:
        return int(self.options.queries)

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        mass = keys.new_zeros(keys.shape[:2], dtype=torch.float32)
        return {"mass": mass, "kind": torch.zeros_like(mass, dtype=torch.uint8)}

    def observe(self, state: State, rows: Rows) -> State:
        mass = state["mass"] * 0.0
        for _, columns, weights in rows.weights():
            mass[:, columns] += weights.mean(1).sum(1) / rows.queries.shape[2]
        return {"mass": mass}

    def read(self, state: State, ids: Tensor) -> State:
        classes = self.facts.classes
        return {} if classes is None else {"kind": classes.to(ids.device)[ids]}

    def scores(self, state: State, text: Text) -> Tensor:
        return state["mass"]

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        ways, mass = self.ways(state, text, budget), state["mass"].masked_fill(text.positions < 0, 0.0)
        covered = (ways * mass).sum(2) / mass.sum(1).clamp(min=1e-9)
        counts, room = ways.sum(2), budget * len(mass)
        levels = sorted({level for level in covered.flatten().tolist() if level < self.options.recover}, reverse=True)
        for level in [self.options.recover, *levels]:
            first = (covered >= level).to(torch.int8).argmax(0)
            if int(counts.gather(0, first.unsqueeze(0)).sum()) <= room:
                break
        kept = ways[first, torch.arange(len(mass), device=first.device)]
        others = ~kept & (text.positions >= 0)
        left = min(max(0, room - int(kept.sum())), int(others.sum()))
        order = mass.masked_fill(~others, -1.0).flatten().sort(descending=True, stable=True).indices
        kept.view(-1)[order[:left]] = True
        return kept

    def ways(self, state: State, text: Text, budget: int) -> Tensor:
        """What each way keeps, the cheapest first, bool `[ways, G, m]`: what stays in any case, and special tokens,
        punctuation, heavy hitters and a window on top of each other; all."""
        there, kind = text.positions >= 0, state["kind"]
        mass = state["mass"].masked_fill(~there, -1.0)
        count = math.ceil(self.options.heavy * mass.shape[1])
        order = mass.sort(dim=1, descending=True, stable=True).indices
        heavy = torch.zeros_like(there).scatter_(1, order[:, :count], True)
        end = text.positions[:, -1:] + 1
        near = text.positions >= end - math.ceil(self.options.window * int(end.max()))
        way, found = self.forced(text, budget), []
        for more in (way, kind == SPECIAL, kind == PUNCTUATION, heavy, near, there):
            way = (way | more) & there
            found.append(way)
        return torch.stack(found)
