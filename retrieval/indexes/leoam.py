"""Chunks of tokens found by refining boxes (LeoAM, arXiv 2506.20187)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.group_softmax import group_softmax
from ...kernels.page_bounds import bound_scores
from ..index import IndexOf, Selection
from ..scoring import Ranking
from ..stored import Geometry, Stored
from ..structures.box_tree import BoxTree, union
from ..structures.chunk_choice import CHUNKS, Asked, choose_chunk
from ..structures.refine import Goal, Ranked, best_chunks

_FAN, _COARSEST = 4, 128
_USUAL_CHUNK = 16
_LEARN_FROM = 1024
"""Below this number of tokens no chunk size is learned."""
_KEEP_EVERY = 16
"""One query in this many pages is kept for the next fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeoAMOptions:
    """Settings of `LeoAMIndex`."""

    chunk: int = 0
    """Tokens per chunk. 0: each layer learns its own from its attention, and takes 16 while no queries are known."""
    width: int = 4
    """Each level of the search keeps at most this many budgets of tokens. 0: all that the bounds leave."""

    def __post_init__(self) -> None:
        if self.chunk < 0 or self.width < 0:
            raise ValueError(f"chunk and width are at least 0, not {self.chunk} and {self.width}")


class Search(NamedTuple):
    """The cost of finding a selection, kept as its `notes`."""

    visited: int
    """Number of boxes scored per KV head, over all levels."""
    chunks: int
    """Number of boxes that scoring every chunk would have taken."""


@dataclass(slots=True)
class LeoAMState:
    """The tree of boxes of one sequence, and what was learned from it."""

    tree: BoxTree
    chunk: int
    fitted: int
    """Tokens of the sequence when it was last fitted."""
    asked: Asked
    """Queries kept for the next fit."""


class LeoAMIndex(IndexOf[LeoAMState]):
    """Idea   a tree of boxes (per channel the largest and the smallest key of a run of tokens) bounds q.k of each run
             from above and below. Start at the coarse boxes, drop those whose upper bound is below what enough
             tokens reach for sure, look into the rest, down to chunks of c tokens; read the chunks with the
             highest upper bounds. c is small in layers with concentrated attention, large where it is flat.
    For    fast steps where page bounds read the wrong pages: chunks as small as a layer wants them.
    State  boxes [G, n / s, 2D] of s = c, 4c, .. tokens up to 128 or 256: 2 / c of the keys' elements and a third more,
             in the keys' dtype; in fp32 on a CPU, which scores in fp32. Where c is larger than a page also those
             of pages: chunks cannot be truncated without. One query in 16 pages, for the next fit.
    Cost   build O(n D); select O(visited boxes D): of n / c, about n / 128 + 1.3 width budget / c, and one wait for
             the device per level; where that saves less than half, all n / c at once. Attention O(budget).
    Exact  dropping by bounds, to rounding. With `width=0` and one query head per KV head the chunks are those
             that scoring every chunk finds. With several heads each head's own best are all ranked, but the
             softmax they are ranked by sums over what was kept, and a chunk that is every head's second choice
             and no head's first may have been dropped. `ranking` scores every chunk.
    Heuristic  `width`: boxes of real keys are wide, their bounds alone rule out next to nothing. So each level keeps
             at most `width` budgets, those with the highest upper bounds (what that loses: docs/decisions/0011).
    Differs  c is learned from the layer's attention, 8 to 128 (`chunk_choice`); the authors' code takes 8 in the
             first two layers and 128 in the others. Boxes are split in four, not two, and kept in memory, not
             on disk. The budget is the caller's; one selection per KV head, from the mean over its query heads
             of their softmax over bounds; sinks and the local window are forced. Where pages lie and how
             they are compressed is the store's part.
    """

    name = "leoam"
    Options = LeoAMOptions
    learns = True
    uses_queries = True

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: LeoAMState | None = None
    ) -> LeoAMState:
        size = self.params.page_size
        chunk = self.options.chunk or (_USUAL_CHUNK if previous is None else previous.chunk)
        asked = None if previous is None else previous.asked
        if queries is not None:
            asked = Asked(queries, positions[size - 1 :: size].contiguous())
        if not self.options.chunk and asked is not None and len(positions) >= _LEARN_FROM:
            chunk = choose_chunk(keys, positions, asked, sink=self.params.sink, local=self.params.local) or chunk
        fitted = int(positions[-1]) + 1 if len(positions) else 0
        nothing = Asked(keys.new_empty(keys.shape[0], 0, 0, keys.shape[2], dtype=torch.float32), positions[:0].clone())
        return LeoAMState(BoxTree.over(keys[:, :0], self._sizes(chunk)), chunk, fitted, nothing)

    def _sizes(self, chunk: int) -> list[int]:
        """Tokens per box of each level: of units, of chunks, and of the coarser levels above."""
        unit = math.gcd(chunk, self.params.page_size)
        sizes = [unit, chunk] if chunk > unit else [chunk]
        while sizes[-1] < _COARSEST:
            sizes.append(sizes[-1] * _FAN)
        return sizes

    def append(self, state: LeoAMState, keys: Tensor, queries: Tensor | None = None) -> None:
        page = state.tree.num_tokens // self.params.page_size
        state.tree.append(keys)
        if queries is None or self.options.chunk:
            return
        first = -(page + 1) % _KEEP_EVERY
        kept = queries[:, :, first::_KEEP_EVERY].to(torch.float32, copy=True)
        pages = page + first + _KEEP_EVERY * torch.arange(kept.shape[2], device=keys.device)
        state.asked = state.asked.and_then(Asked(kept, (pages + 1) * self.params.page_size - 1))

    def is_outgrown(self, state: LeoAMState) -> bool:
        """True if the sequence is twice as long as at the last fit, and late queries are known to learn from."""
        tokens, asked = state.tree.num_tokens, state.asked.positions
        if tokens < max(_LEARN_FROM, 2 * state.fitted) or not len(asked):
            return False
        return int(asked[-1]) * 4 >= tokens * 3

    def truncate(self, state: LeoAMState, num_tokens: int) -> None:
        state.tree.truncate(num_tokens)
        state.asked = state.asked.before(num_tokens)

    def select(self, state: LeoAMState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        tree, unit = state.tree, state.tree.sizes[0]
        total = num_tokens // unit
        count = min(budget // unit, total)
        sink = min(self.params.units(self.params.sink, unit), count)
        local = min(self.params.units(self.params.local, unit), count - sink)
        wanted = count - sink - local
        limit = self.options.width * budget
        goal = Goal(first=sink * unit, last=(total - local) * unit, wanted=wanted * unit, limit=limit)
        level = tree.sizes.index(state.chunk)
        levels = tree.up_to(num_tokens)[level:]
        ranked = best_chunks(q, tree.sizes[level:], levels, goal)
        chosen = _best_units(ranked, state.chunk // unit, wanted, sink, total - local)
        first = torch.arange(sink, device=q.device).expand(len(chosen), -1)
        last = torch.arange(total - local, total, device=q.device).expand(len(chosen), -1)
        search = Search(ranked.visited, levels[0].shape[1])
        return Selection(torch.cat([first, chosen, last], 1), unit, search)

    def ranking(self, state: LeoAMState) -> Ranking:
        """All chunks by their upper bounds, without a search."""
        tree, unit = state.tree, state.tree.sizes[0]
        fan, units, chunks = state.chunk // unit, tree.buffer(0), tree.buffer(tree.sizes.index(state.chunk))
        room = min(units.shape[1], chunks.shape[1] * fan)

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            counts = ((num_units + fan - 1) // fan).expand(len(q))
            hi = bound_scores(q, chunks, counts)
            if fan > 1:  # the last chunk ends where the units do, whatever the state holds behind them
                last = ((num_units - 1) // fan).clamp(min=0)
                inside = torch.arange(fan, device=q.device) + last * fan
                box = union(units.index_select(1, inside.minimum(num_units - 1).clamp(min=0)))
                hi.index_copy_(2, last, bound_scores(q, box.unsqueeze(1)))
            best = hi[:, 0] if hi.shape[1] == 1 else group_softmax(hi, counts, logs=True)
            return best.repeat_interleave(fan, -1)[:, :room]

        sink, local = self.params.units(self.params.sink, unit), self.params.units(self.params.local, unit)
        reads = (units, chunks) if fan > 1 else (chunks,)
        return Ranking(unit=unit, sink=sink, local=local, room=room, scores=scores, reads=reads)

    def export(self, state: LeoAMState) -> dict[str, Tensor]:
        return {
            **{f"boxes{level}": boxes for level, boxes in enumerate(state.tree.levels)},
            "learned": torch.tensor([state.chunk, state.fitted]),
            "queries": state.asked.queries,
            "query_positions": state.asked.positions,
        }

    def restore(self, tensors: dict[str, Tensor]) -> LeoAMState:
        chunk, fitted = tensors["learned"].tolist()
        sizes = self._sizes(chunk)
        tree = BoxTree(sizes, [tensors[f"boxes{level}"] for level in range(len(sizes))])
        return LeoAMState(tree, chunk, fitted, Asked(tensors["queries"], tensors["query_positions"]))

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        learned, asked, queries = (tensors.get(name) for name in ("learned", "query_positions", "queries"))
        if learned is None or learned.dtype != torch.int64 or learned.shape != (2,):
            raise ValueError("'learned': not two whole numbers")
        if asked is None or asked.dtype != torch.int64 or asked.dim() != 1 or queries is None or queries.dim() != 4:
            raise ValueError("'queries' or 'query_positions': not there, or of another kind")
        chunk, count = int(learned[0]), len(asked)
        if chunk not in ({self.options.chunk} if self.options.chunk else {*CHUNKS, _USUAL_CHUNK}):
            raise ValueError(f"'learned': chunks of {chunk} tokens")
        if count and bool((asked.diff() <= 0).any()):
            raise ValueError("'query_positions': not ascending")
        boxes, sizes = BoxTree.over(of.keys, self._sizes(chunk)).levels, self._sizes(chunk)
        heads = of.repeats if count else queries.shape[1]  # an empty tensor may have any number of heads
        return {
            **{
                f"boxes{level}": Stored(none.dtype, (of.groups, -(-of.num_tokens // size), none.shape[2]))
                for level, (none, size) in enumerate(zip(boxes, sizes, strict=True))
            },
            "learned": Stored(torch.int64, (2,), 0),
            "queries": Stored(torch.float32, (of.groups, heads, count, of.dim)),
            "query_positions": Stored(torch.int64, (count,), 0, of.num_tokens),
        }


def _best_units(ranked: Ranked, per_chunk: int, count: int, first: int, last: int) -> Tensor:
    """Choose `count` units among `first .. last - 1`, ascending: chunk after chunk by rank, and of the last chunk its
    first units. Returns int64 `[G, count]`."""
    ids, scores = ranked.ids, ranked.scores
    if per_chunk > 1:
        ids = (ids.unsqueeze(-1) * per_chunk + torch.arange(per_chunk, device=ids.device)).flatten(1)
        scores = scores.repeat_interleave(per_chunk, 1)
    scores = scores.masked_fill((ids < first) | (ids >= last), -torch.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return ids.gather(1, best).sort(-1).values
