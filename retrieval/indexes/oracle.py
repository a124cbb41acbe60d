"""Exact top-k tokens: the ceiling at a given number of tokens read."""

from __future__ import annotations

from torch import Tensor

from ...kernels.group_softmax import group_softmax
from ...kernels.key_scores import key_scores
from ...kernels.topk_pages import group_scores, topk_pages
from ..index import IndexOf, Rows, Selection
from ..scoring import Ranking
from ..stored import Geometry, Stored


class OracleIndex(IndexOf[Rows]):
    """Idea   score every token exactly and keep the best.
    For    the ceiling: what a budget is worth at best.
    State  all keys [G, n, D]: as much as the keys themselves, which is why it is only a yardstick.
    Cost   select O(n D), attention O(budget).
    Note   one selection per KV head, from the mean over its query heads of their softmax.
    """

    name = "oracle"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: Rows | None = None) -> Rows:
        return Rows(keys[:, :0].clone())

    def append(self, state: Rows, keys: Tensor, queries: Tensor | None = None) -> None:
        state.append(keys)

    def truncate(self, state: Rows, num_tokens: int) -> None:
        state.truncate(num_tokens)

    def select(self, state: Rows, q: Tensor, num_tokens: int, budget: int) -> Selection:
        scores = q.float() @ state.data[:, :num_tokens].float().transpose(1, 2)
        sink, local = min(self.params.sink, budget), self.params.local
        ids = topk_pages(group_scores(scores), budget, sink=sink, local=min(local, budget - sink))
        return Selection(ids, 1)

    def ranking(self, state: Rows) -> Ranking:
        keys = state.buffer

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            counts = num_units.expand(len(q))
            return group_softmax(key_scores(q, keys, counts), counts)

        sink, local = self.params.sink, self.params.local
        return Ranking(unit=1, sink=sink, local=local, room=keys.shape[1], scores=scores, reads=(keys,))

    def export(self, state: Rows) -> dict[str, Tensor]:
        return {"keys": state.data}

    def restore(self, tensors: dict[str, Tensor]) -> Rows:
        return Rows(tensors["keys"])

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {"keys": Stored(of.keys.dtype, (of.groups, of.num_tokens, of.dim))}
