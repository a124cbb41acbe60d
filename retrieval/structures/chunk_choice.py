"""The choice of a layer's chunk size: the largest chunk that loses little attention.

Where attention is concentrated, a large chunk drags unneeded tokens along and its box is loose; where
neighbours are alike, small chunks find nothing that large ones miss. Both are measured on a sample:
chunks of each size are ranked as the index ranks them, the same number of tokens is taken, and the
attention mass they hold is compared (arXiv 2506.20187 sets sizes by layer number instead).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.page_bounds import bound_scores, page_bounds
from ...kernels.topk_pages import group_scores

CHUNKS = (8, 16, 32, 64, 128)
"""The sizes to choose from, in tokens; each divides the last."""
TOLERANCE = 0.002
"""The share of the attention mass that a larger chunk may lose against the smallest: losses of all layers add up. Ten
times as much doubles the KL of what SmolLM2 says (decision 0010)."""
SHARE = 8
"""One token in this many is taken for the comparison."""
MAX_QUERIES = 16
"""The most queries to compare on: with all query heads, enough for a mean to a point or so."""


class Asked(NamedTuple):
    """Queries, and their positions in the text."""

    queries: Tensor
    """`[G, R, p, D]`, rotated and scaled."""
    positions: Tensor
    """int64 `[p]`, ascending."""

    def and_then(self, further: Asked) -> Asked:
        """These queries followed by later ones."""
        if not len(self.positions):
            return further
        return Asked(torch.cat([self.queries, further.queries], 2), torch.cat([self.positions, further.positions]))

    def before(self, position: int) -> Asked:
        """The queries that stand before `position`."""
        count = int(torch.searchsorted(self.positions, position))
        return Asked(self.queries[:, :, :count], self.positions[:count])


def choose_chunk(keys: Tensor, positions: Tensor, asked: Asked, *, sink: int, local: int) -> int | None:
    """Choose the tokens per chunk, one of `CHUNKS`; None if the sample cannot tell.

    Args:
        keys: sample `[G, m, D]`. Taken as adjacent: gaps make large chunks look worse than they are,
            never better.
        positions: int64 `[m]`, ascending.
        asked: queries; those that see at least three quarters of the sample are used.
        sink, local: tokens that are always read, so that finding them is no merit.
    """
    seen = torch.searchsorted(positions, asked.positions.contiguous(), right=True)
    late = torch.nonzero(seen * 4 >= len(positions) * 3).flatten()
    if not len(late):
        return None
    late = late[
        torch.arange(min(len(late), MAX_QUERIES), device=late.device) * len(late) // min(len(late), MAX_QUERIES)
    ]
    seen, queries = seen[late], asked.queries[:, :, late].float()
    size = CHUNKS[-1]
    first, stop = -(-sink // size) * size, (int(seen.min()) - local) // size * size
    count = (stop - first) // size // SHARE * size
    if count <= 0:
        return None
    weights = _attention(queries, keys, seen)[:, :, first:stop]
    middle = keys[:, first:stop]
    mass = {chunk: _covered(queries, middle, weights, chunk, count) for chunk in CHUNKS}
    return max(chunk for chunk in CHUNKS if mass[chunk] >= mass[CHUNKS[0]] - TOLERANCE)


def _attention(queries: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    """Causal attention weights `[G, p, m]`, the mean over a KV head's query heads; query i sees the first `seen[i]`
    keys."""
    scores = torch.einsum("grpd,gmd->grpm", queries, keys.float())
    hidden = torch.arange(keys.shape[1], device=keys.device) >= seen.unsqueeze(1)
    return torch.softmax(scores.masked_fill_(hidden, -torch.inf), -1).mean(1)


def _covered(queries: Tensor, keys: Tensor, weights: Tensor, chunk: int, count: int) -> float:
    """The mean attention weight of the `count` tokens whose chunks rank highest."""
    hi = bound_scores(queries.flatten(1, 2), page_bounds(keys, chunk))
    best = group_scores(hi.view(*queries.shape[:3], -1)).topk(count // chunk, -1).indices
    held = weights.reshape(*weights.shape[:2], -1, chunk).sum(-1)
    return float(held.gather(-1, best).sum(-1).mean())
