"""Best-first search of a box tree, level by level: which chunks score highest, without scoring them all.

    coarsest boxes -> bounds hi, lo of q.k -> keep what may be among the best -> their children -> ... -> chunks

A box is dropped for a query head when its hi is below a value that enough tokens are sure to reach: boxes
with lo at or above it hold as many tokens as are wanted. A chunk's own hi is at least the lo and at most the
hi of every box around it, so as many chunks rank before each one in the dropped box. It is dropped for good
when all query heads of its KV head drop it.

Shapes  q [G, R, D]   boxes [G, n, 2D]   ids [G, m] int64, ascending   valid bool [G, m]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.box_scores import box_scores
from ...kernels.page_bounds import bound_scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The goal of a search, in tokens."""

    first: int
    """Tokens before this number are chosen anyway."""
    last: int
    """Tokens from this number on are chosen anyway."""
    wanted: int
    """Number of tokens to choose in between."""
    limit: int
    """The most tokens that a level keeps besides those chosen anyway, at least `wanted`; 0: all that the bounds
    leave."""

    def inner(self, size: int, count: int) -> tuple[int, int]:
        """Range [begin, end) of complete boxes that hold no token chosen anyway, of `count` boxes of `size` tokens.
        Only these count towards `wanted`."""
        return min(-(-self.first // size), count), min(self.last // size, count)

    def room(self, size: int, count: int) -> int:
        """The most boxes that are kept of `count` boxes of `size` tokens."""
        if not self.limit:
            return count
        first, last = self.inner(size, count)
        return min(count, -(-self.limit // size) + first + count - last)


class Ranked(NamedTuple):
    """Chunks that may be among the best, and their scores."""

    ids: Tensor
    """int64 `[G, m]`, ascending where they count."""
    scores: Tensor
    """fp32 `[G, m]`: the upper bound, or with several query heads the logarithm of their softmaxes' sum; -inf for a
    chunk that does not count."""
    visited: int
    """Number of boxes scored per KV head."""


class _Candidates(NamedTuple):
    """Boxes of one level to score; rows may differ in how many are valid."""

    ids: Tensor
    valid: Tensor


def best_chunks(q: Tensor, sizes: Sequence[int], levels: Sequence[Tensor], goal: Goal) -> Ranked:
    """Refine from the last level (the coarsest) to the first, and rank what is left there.

    Where a level cannot rule out half of the one below, it is passed over: scoring adjacent boxes is
    cheaper than gathering some of them.
    """
    visited, found = 0, None
    for level in range(len(sizes) - 1, 0, -1):
        size, fan = sizes[level], sizes[level] // sizes[level - 1]
        count, below = levels[level].shape[1], levels[level - 1].shape[1]
        if found is None and goal.limit and goal.room(size, count) * fan * 2 >= below:
            continue
        here = found or _all_of(levels[level])
        visited += here.ids.shape[1]
        kept = _survivors(box_scores(q, _boxes(levels[level], found)), here, size, count, goal)
        found = None if kept.ids.shape[1] * fan * 2 >= below else _children(kept, fan, below)
    here = found or _all_of(levels[0])
    hi = bound_scores(q, _boxes(levels[0], found)).masked_fill(~here.valid.unsqueeze(1), -torch.inf)
    scores = _rank(hi).masked_fill(~here.valid, -torch.inf)
    return Ranked(here.ids, scores, visited + here.ids.shape[1])


def _survivors(bounds: tuple[Tensor, Tensor], here: _Candidates, size: int, count: int, goal: Goal) -> _Candidates:
    """Keep the boxes of a level of `count` that some query head may want, the highest upper bounds first as far as
    there is room."""
    hi, lo = bounds
    first, last = goal.inner(size, count)
    sure = (here.valid & (here.ids >= first) & (here.ids < last)).unsqueeze(1)
    needed = -(-goal.wanted // size)
    keep = here.valid
    if needed <= lo.shape[-1]:
        reached = lo.masked_fill(~sure, -torch.inf).topk(needed, -1).values[..., -1:]
        keep = here.valid & (hi >= reached).any(1)
    most = min(goal.room(size, count), int(keep.sum(-1).max()))
    scores = _rank(hi.masked_fill(~here.valid.unsqueeze(1), -torch.inf))
    chosen = scores.masked_fill(~keep, -torch.inf).topk(most, -1, sorted=False).indices.sort(-1).values
    return _Candidates(here.ids.gather(1, chosen), keep.gather(1, chosen))


def _rank(hi: Tensor) -> Tensor:
    """One score per box, `[G, R, m]` -> `[G, m]`: as by `group_scores`, but in logarithms, which tell small scores
    apart."""
    return hi[:, 0] if hi.shape[1] == 1 else torch.log_softmax(hi, -1).logsumexp(1)


def _children(parents: _Candidates, fan: int, count: int) -> _Candidates:
    """The boxes of `parents` on the level below, which has `count` boxes."""
    ids = (parents.ids.unsqueeze(-1) * fan + torch.arange(fan, device=parents.ids.device)).flatten(1)
    valid = parents.valid.repeat_interleave(fan, 1) & (ids < count)
    return _Candidates(ids.clamp(max=count - 1), valid)


def _all_of(level: Tensor) -> _Candidates:
    groups, count, _ = level.shape
    ids = torch.arange(count, device=level.device).expand(groups, -1)
    return _Candidates(ids, torch.ones_like(ids, dtype=torch.bool))


def _boxes(level: Tensor, found: _Candidates | None) -> Tensor:
    """The boxes of a level `[G, n, 2D]`: all of them, or those that were found. Boxes lie side by side in each
    group."""
    if found is None:
        return level
    groups, count, width = level.shape
    step = level.stride(0) // width  # as one table of rows, `index_select` copies them several times faster
    table = level.as_strided(((groups - 1) * step + count, width), (width, 1))
    rows = found.ids + torch.arange(groups, device=level.device).unsqueeze(1) * step
    return table.index_select(0, rows.flatten()).view(groups, -1, width)
