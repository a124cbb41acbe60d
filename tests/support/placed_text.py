"""A text for placements in plain tensors, and the attention of its rows, computed at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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


def attention(rows: Rows) -> Tensor:
    """The weights `[G, R, n, m]` of all rows over all columns at once."""
    text: Any = rows.text
    count = rows.queries.shape[2]
    logits = rows.queries @ text.keys.unsqueeze(1).transpose(2, 3)
    at = rows.start + torch.arange(count)
    seen = (text.positions[:, None] <= at[:, None]) & (text.positions[:, None] >= 0)
    return logits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)


def placement(spec: str, params: IndexParams = PARAMS, layer: int = 0) -> Placement:
    return placement_spec(spec).make(params, layer, Facts(REPEATS))


def seen(one: Placement, text: PlainText, rows: Rows | None = None) -> State:
    """What `one` knows of the whole text, and of how these rows attend."""
    state = {**one.start(text.keys[:, :0], text.values[:, :0]), **one.enter(text.keys, text.values, text.positions[0])}
    return state if rows is None else {**state, **one.observe(state, rows)}
