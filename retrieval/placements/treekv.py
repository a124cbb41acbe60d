"""Dense near, sparse far, by choices between neighbours (TreeKV, arXiv 2501.04987)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import Placement, Rows, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeKVOptions:
    """Settings of `treekv`."""

    recent: float = 0.5
    """Share of the budget for the last tokens."""
    block: int = 16
    """Tokens of a prompt that stay or go together, and the last queries of it that score them."""

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent is a share from 0 to 1, not {self.recent}")
        if not 1 <= self.block <= 1024:
            raise ValueError(f"block is 1 to 1024 tokens, not {self.block}")


class TreeKVPlacement(Placement):
    """Idea   what is far matters less and less, but smoothly. When one token is too many, two neighbours are compared,
             and the one goes that got less attention on average; next time, the next two, from the oldest kept token to
             the newest and again from the oldest. So each round halves what it passes: the further back, the sparser,
             like the leaves of a tree whose roots are far. A prompt goes the same way a block at a time.
    For    very long texts and replies, of which every part should leave a trace.
    State  two numbers for each kept token and KV head: the attention it got, and from how many queries.
    Cost   attention weights of a prompt's last `block` queries, and of each page of a reply; choices are few steps.
    Differs  reconstructed from a reader's notes; there is no published code, and the block size is not known. Positions
             stay as they were (published: given anew in order). Where the next choice is follows from how many tokens
             went before, so a reply does not begin at the oldest. A reply is pruned a page at a time, by the attention
             at the page's end. Up to two blocks of a prompt's budget stay unused.
    """

    name = "treekv"
    Options = TreeKVOptions
    columns = ("mass", "queries")
    prunes = True

    @property
    def rows(self) -> int:
        return int(self.options.block)

    def observe(self, state: State, rows: Rows) -> State:
        positions, count = rows.text.positions, rows.queries.shape[2]
        mass = state["mass"].clone()
        for _, columns, weights in rows.weights():
            mass[:, columns] += weights.mean(1).sum(1)
        return {"mass": mass, "queries": state["queries"] + (rows.start + count - positions).clamp(0, count)}

    def scores(self, state: State, text: Text) -> Tensor:
        return state["mass"] / state["queries"].clamp(min=1)

    def recent(self, budget: int) -> int:
        return int(self.options.recent * budget)

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        kept = self.forced(text, budget)
        first = int((text.positions < self.params.sink).sum(1).max())
        count, end = text.positions.shape[1], int(text.positions.max()) + 1
        last = min(count - first, max(self.params.local, self.recent(budget)))
        middle, room = count - first - last, max(0, budget - first - last)
        size = self.options.block if end <= text.prompt else 1
        if middle <= room:
            return text.positions >= 0
        blocks, rest = middle // size, middle % size
        scores = self.scores(state, text)[:, first : first + blocks * size].reshape(-1, blocks, size).mean(2)
        chosen = survivors(scores, max(0, room - rest) // size, (end - count) // size)
        kept[:, first : first + blocks * size] |= chosen.repeat_interleave(size, 1)
        kept[:, first + blocks * size : count - last] |= rest <= room
        return kept & (text.positions >= 0)


def survivors(scores: Tensor, capacity: int, gone: int) -> Tensor:
    """Which of `[G, n]` are left when they come one by one to a place for `capacity`, where each time that one is too
    many the next two neighbours are compared, after `gone` such choices before. Of equals the later one stays.

    While the choices of a round move one place to the right, all behind them moves one to the left: a round compares
    first and second, third and fourth, and so on, whatever came meanwhile. So it is done at once.
    """
    groups, count = scores.shape
    left = torch.arange(count, device=scores.device).expand(groups, -1)
    place = gone % capacity if capacity else 0
    while capacity and (surplus := left.shape[1] - capacity) > 0:
        choices = min(surplus, capacity - place)
        pairs = left[:, place : place + 2 * choices].view(groups, choices, 2)
        of_pairs = scores.gather(1, pairs.flatten(1)).view_as(pairs)
        better = (of_pairs[..., 1:] >= of_pairs[..., :1]).long()
        left = torch.cat([left[:, :place], pairs.gather(2, better)[..., 0], left[:, place + 2 * choices :]], 1)
        place = 0
    kept = torch.zeros_like(scores, dtype=torch.bool)
    return kept.scatter_(1, left, True) if capacity else kept
