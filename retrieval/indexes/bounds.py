"""Page bounds (Quest, arXiv 2406.10774): rank pages by the score none of their keys can exceed."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.group_softmax import group_softmax
from ...kernels.page_bounds import bound_scores, page_bounds
from ...kernels.topk_pages import group_scores, topk_pages
from ..index import IndexOf, Rows, Selection
from ..scoring import BoundScoring, Counts, Ranking
from ..stored import Geometry, Stored


class BoundsIndex(IndexOf[Rows]):
    """Idea   per page and channel keep the largest and the smallest key; sum_d max(q lo, q hi)
             bounds every q.k of the page from above. Read the pages with the highest bounds.
    For    the fastest steps: whole pages, chosen by little work.
    State  bounds [G, pages, 2D]: 2 / page_size of the keys, and of their dtype: a largest key is a key.
    Cost   build O(n D), append O(page), select O(pages D), attention O(budget).
    Differs  one selection per KV head, from the mean over its query heads of their softmax over
             page bounds (the paper's models have one query head per KV head); sinks and the local
             window are forced; every layer is sparse (the paper leaves the first two dense).
    """

    name = "bounds"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: Rows | None = None) -> Rows:
        return Rows(page_bounds(keys[:, :0], self.params.page_size))

    def append(self, state: Rows, keys: Tensor, queries: Tensor | None = None) -> None:
        state.append(page_bounds(keys, self.params.page_size))

    def truncate(self, state: Rows, num_tokens: int) -> None:
        state.truncate(num_tokens // self.params.page_size)

    def select(self, state: Rows, q: Tensor, num_tokens: int, budget: int) -> Selection:
        size = self.params.page_size
        total, (count, sink, local) = num_tokens // size, self.counts(budget)
        scores = group_scores(bound_scores(q, state.data[:, :total]))
        return Selection(topk_pages(scores, count, sink=sink, local=local), size)

    def counts(self, budget: int) -> Counts:
        """How many pages are read, and how many of them in any case."""
        size = self.params.page_size
        count = budget // size
        sink = min(self.params.units(self.params.sink, size), count)
        return Counts(count, sink, min(self.params.units(self.params.local, size), count - sink))

    def scoring(self, state: Rows, num_tokens: int) -> BoundScoring | None:
        if state.data.dtype not in (torch.float32, torch.bfloat16):
            return None
        size, total = self.params.page_size, num_tokens // self.params.page_size
        return BoundScoring(unit=size, num_units=total, counts=self.counts, bounds=state.data[:, :total])

    def ranking(self, state: Rows) -> Ranking:
        size, bounds = self.params.page_size, state.buffer

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            counts = num_units.expand(len(q))
            return group_softmax(bound_scores(q, bounds, counts), counts)

        sink, local = self.params.units(self.params.sink, size), self.params.units(self.params.local, size)
        return Ranking(unit=size, sink=sink, local=local, room=bounds.shape[1], scores=scores, reads=(bounds,))

    def export(self, state: Rows) -> dict[str, Tensor]:
        return {"bounds": state.data}

    def restore(self, tensors: dict[str, Tensor]) -> Rows:
        return Rows(tensors["bounds"])

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        dtype, found = of.keys.dtype, tensors.get("bounds")
        if found is not None and found.dtype == torch.float32:  # as earlier versions kept the same numbers on a CPU
            dtype = found.dtype
        return {"bounds": Stored(dtype, (of.groups, of.num_tokens // self.params.page_size, 2 * of.dim))}
