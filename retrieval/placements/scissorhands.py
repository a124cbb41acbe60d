"""Tokens that stay important (Scissorhands, arXiv 2305.17118): few queries gave them less than their share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import Placement, Rows, State, Text


@dataclass(frozen=True, kw_only=True, slots=True)
class ScissorhandsOptions:
    """Settings of `scissorhands`."""

    window: int = 400
    """The last queries that count."""
    recent: int = 10
    """The last tokens stay: too few queries have seen them."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 4096:
            raise ValueError(f"window is 1 to 4096 queries, not {self.window}")
        if not 0 <= self.recent <= 4096:
            raise ValueError(f"recent is 0 to 4096 tokens, not {self.recent}")


class ScissorhandsPlacement(Placement):
    """Idea   what mattered to the last queries will matter to the next ones. A query that sees t tokens would give each
             1/t if it had no preference: count how many of the last `window` queries gave a token less than that, and
             let go of the tokens with the highest counts.
    For    long replies, where a token counts for how often it is wanted, not how much.
    State  a history for each kept token and KV head: one count for each page of queries in the window, 50 bytes.
    Cost   attention weights of `window` queries, once for each prompt; at each page of a reply, those of its queries.
    Differs  written after two re-implementations; the paper itself could not be read. The window moves by pages, and a
             reply is pruned a page at a time. Each query head of a KV head counts for itself. A token that a query
             cannot see yet is not counted by it. Of equals the earlier one stays.
    """

    name = "scissorhands"
    Options = ScissorhandsOptions
    columns = ("history",)
    prunes = True

    @property
    def rows(self) -> int:
        return int(self.options.window)

    @property
    def _pages(self) -> int:
        return self.params.units(self.rows, self.params.page_size)

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        return {"history": torch.zeros(*keys.shape[:2], self._pages, dtype=torch.int16, device=keys.device)}

    def observe(self, state: State, rows: Rows) -> State:
        positions, size, count = rows.text.positions.contiguous(), self.params.page_size, rows.queries.shape[2]
        padding = (positions < 0).sum(1, keepdim=True)
        new = state["history"].new_zeros(*positions.shape, self.params.units(count, size))
        for at, columns, weights in rows.weights():
            seen = torch.searchsorted(positions, at.expand(len(positions), -1).contiguous(), right=True) - padding
            some = positions[:, None, columns]
            is_seen = (some <= at[:, None]) & (some >= 0)
            below = (weights < (1 / seen)[:, None, :, None]).sum(1) * is_seen  # [G, n, b]
            page = (at - rows.start).div(size, rounding_mode="floor")
            new[:, columns].index_add_(2, page, below.transpose(1, 2).to(new.dtype))
        return {"history": torch.cat([state["history"], new], 2)[:, :, -self._pages :]}

    def scores(self, state: State, text: Text) -> Tensor:
        return -state["history"].sum(2).float()

    def recent(self, budget: int) -> int:
        return int(self.options.recent)
