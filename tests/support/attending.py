"""One sequence's attention in one layer, with room for its parts, for tests of the rows that layers fill."""

from __future__ import annotations

from compiled_rows import nothing_yet
from torch import Tensor

from stratakv.runtime.engine.compiled_step import _Operations
from stratakv.runtime.layers.attend_rows import Attending, Room, most_parts

SCALE = 0.3


def attending(q: Tensor, groups: int, tokens: int) -> Attending:
    """For a query fp32 `[H, D]` over so many tokens."""
    heads, dim = q.shape
    parts = nothing_yet(most_parts(tokens) * heads * (2 + dim))
    return Attending(q, SCALE, parts, groups, nothing_yet(heads * dim), _Operations(), Room())
