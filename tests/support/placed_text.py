"""A text for placements in plain tensors, and the attention of its rows, computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.placement import Facts, Placement, Rows, State
from stratakv.retrieval.placement_registry import placement_spec

GROUPS, REPEATS, DIM = 2, 3, 8
PARAMS = IndexParams(page_size=16, sink=2, local=4)


class PlainText(NamedTuple):
    """A text that gives `BLOCK` columns at a time."""

    positions: Tensor
    """int64 `[G, m]`."""
    keys: Tensor
    """`[G, m, D]`."""
    values: Tensor
    prompt: int = 1 << 30
    """Unless a test says otherwise, all of it is a prompt."""

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for begin in range(0, self.positions.shape[1], BLOCK):
            some = slice(begin, min(begin + BLOCK, self.positions.shape[1]))
            yield some, self.keys[:, some], self.values[:, some]


BLOCK = 7


def plain_text(count: int, *, seed: int = 0, dim: int = DIM) -> PlainText:
    """`count` random tokens, all of them kept."""
    rng = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, GROUPS, count, dim, generator=rng)
    return PlainText(torch.arange(count).expand(GROUPS, -1), keys, values)


def queries(count: int, *, seed: int = 1, dim: int = DIM) -> Tensor:
    """Random queries `[G, R, count, D]`, scaled."""
    return torch.randn(GROUPS, REPEATS, count, dim, generator=torch.Generator().manual_seed(seed))


def all_keys(rows: Rows) -> Tensor:
    """The keys `[G, m, D]` of the whole text of `rows`."""
    return torch.cat([keys for _, keys, _ in rows.text.blocks()], 1)


def logits(rows: Rows) -> Tensor:
    """The logits `[G, R, n, m]` of all rows over all columns at once, -inf where a row does not see."""
    positions, at = rows.text.positions, rows.start + torch.arange(rows.queries.shape[2])
    seen = (positions[:, None] <= at[:, None]) & (positions[:, None] >= 0)
    found = rows.queries @ all_keys(rows).unsqueeze(1).transpose(2, 3)
    return found.masked_fill(~seen.unsqueeze(1), -torch.inf)


def attention(rows: Rows) -> Tensor:
    """The weights `[G, R, n, m]` of all rows over all columns at once."""
    return logits(rows).softmax(-1)


def placement(spec: str, params: IndexParams = PARAMS, layer: int = 0) -> Placement:
    return placement_spec(spec).make(params, layer, Facts(REPEATS))


def seen(one: Placement, text: PlainText, rows: Rows | None = None) -> State:
    """What `one` knows of the whole text, and of how these rows attend."""
    state = {**one.start(text.keys[:, :0], text.values[:, :0]), **one.enter(text.keys, text.values, text.positions[0])}
    return state if rows is None else {**state, **one.observe(state, rows)}
