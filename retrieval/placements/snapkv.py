"""Votes of a prompt's last queries (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..placement import Placement, Rows, State, Text, pooled


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapKVOptions:
    """Settings of `snapkv`."""

    window: int = 32
    """The last tokens of a prompt: their queries vote, and they stay themselves."""
    pool: int = 5
    """Neighbouring tokens that share their votes, an odd number."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 1024:
            raise ValueError(f"window is 1 to 1024 tokens, not {self.window}")
        if not 1 <= self.pool <= 63 or self.pool % 2 == 0:
            raise ValueError(f"pool is an odd number from 1 to 63, not {self.pool}")


class SnapKVPlacement(Placement):
    """Idea   what a prompt's last queries attend to is what its answer will: let them vote for the tokens before them,
             and smooth the votes, so that a token's neighbours stay with it.
    For    long prompts with the question at their end.
    State  one number for each kept token and KV head: the votes.
    Cost   attention weights of `window` queries, once for each prompt.
    Differs  all of a reply is kept (as published). The published code divides a prompt's tokens anew only at the first
             prompt; here each later one votes again, over what is left.
    """

    name = "snapkv"
    Options = SnapKVOptions
    columns = ("votes",)

    @property
    def rows(self) -> int:
        return int(self.options.window)

    def observe(self, state: State, rows: Rows) -> State:
        votes = state["votes"] * 0.0
        for _, columns, weights in rows.weights():
            votes[:, columns] += weights.mean(1).sum(1) / rows.queries.shape[2]
        return {"votes": votes}

    def scores(self, state: State, text: Text) -> Tensor:
        return pooled(state["votes"], self.options.pool)

    def recent(self, budget: int) -> int:
        return int(self.options.window)
