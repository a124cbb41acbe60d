"""Spread of keys and values against what comes next (LagKV, arXiv 2504.04704)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import Placement, Rows, State, Text

UNJUDGED = 2.0
"""A rank above all ranks: the token's partition, or the next one, is not whole yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LagKVOptions:
    """Settings of `lagkv`."""

    lag: int = 128
    """Tokens of a partition: of each the same share stays."""

    def __post_init__(self) -> None:
        if not 2 <= self.lag <= 8192:
            raise ValueError(f"lag is 2 to 8192 tokens, not {self.lag}")


class LagKVPlacement(Placement):
    """Idea   cut a text into partitions, and see each token by the ranges that the channels have in the next partition:
             x' = (x - min) / (max - min). A token whose channels lie wide apart by that measure says something that
             what follows does not. No attention is looked at.
    For    prompts whose questions are not known yet, and long replies, without attention computed again.
    State  one number for each kept token and KV head: its rank in its partition, from 0 to 1.
    Cost   one pass over the keys and values of a prompt, and of each partition that a reply fills.
    Differs  score = mean over keys and values of softmax over tokens of std over channels, as published; then ranks, so
             that each partition keeps the same share of itself whatever the budget (published: a ratio). What is not
             judged yet, up to two partitions at the end, stays, the latest first: a budget below that is a window.
             Sinks are the runtime's (16; published code 4 and 16). A channel that is the same in all of the next
             partition is divided by a tiny number (published: by zero).
    """

    name = "lagkv"
    Options = LagKVOptions
    columns = ("rank",)
    prunes = True

    @property
    def rows(self) -> int:
        """One: what is wanted is the moment, not the query."""
        return 1

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        return {"rank": keys.new_full(keys.shape[:2], UNJUDGED, dtype=torch.float32)}

    def observe(self, state: State, rows: Rows) -> State:
        text, lag = rows.text, int(self.options.lag)
        at = text.positions[0]  # what is not judged is the same of all heads, and without a gap
        is_start = (state["rank"][0] == UNJUDGED) & (at >= self.params.sink) & ((at - self.params.sink) % lag == 0)
        starts = is_start.nonzero()[:, 0].tolist()
        if len(starts) < 2 or len(at) - starts[0] < 2 * lag:
            return {}
        ranks, begin, held = state["rank"].clone(), starts[0], []
        for columns, keys, values in text.blocks():
            if columns.stop > starts[0]:
                held.append(torch.stack([keys, values])[:, :, max(0, starts[0] - columns.start) :])
                known = torch.cat(held, 2)
                while known.shape[2] >= 2 * lag:
                    some, known = known[:, :, :lag], known[:, :, lag:]
                    ranks[:, begin : begin + lag] = _ranks(lag_scores(some, known[:, :, :lag])) / lag
                    begin += lag
                held = [known]
        return {"rank": ranks}

    def scores(self, state: State, text: Text) -> Tensor:
        rank = state["rank"]
        return torch.where(rank == UNJUDGED, UNJUDGED + text.positions, rank)


def _ranks(scores: Tensor) -> Tensor:
    return scores.sort(dim=1, stable=True).indices.argsort(1)


def lag_scores(some: Tensor, following: Tensor) -> Tensor:
    """How much tokens say, `[G, n]`, from keys and values `[2, G, n, D]` of them and of those after them."""
    low, high = following.amin(2, keepdim=True), following.amax(2, keepdim=True)
    seen = (some - low) / (high - low).clamp(min=1e-9)
    return seen.std(-1).softmax(-1).mean(0)
