"""The index that reads sinks and the most recent tokens: the floor (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..index import Index, Selection
from ..stored import Geometry, Stored


class WindowIndex(Index):
    """Idea   the first tokens anchor the softmax, the last ones carry the local context.
    State  none.
    Cost   select O(1), attention O(budget).
    Differs  the whole budget goes to sinks and window, so that it reads as much as its rivals;
             positions stay those of the text instead of being renumbered inside the cache.
    """

    name = "window"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: Any = None) -> None:
        return None

    def append(self, state: Any, keys: Tensor, queries: Tensor | None = None) -> None:
        return None

    def truncate(self, state: Any, num_tokens: int) -> None:
        return None

    def select(self, state: Any, q: Tensor, num_tokens: int, budget: int) -> Selection:
        size = self.params.page_size
        total = num_tokens // size
        count = min(total, budget // size)
        sink = min(self.params.units(self.params.sink, size), count)
        first = torch.arange(sink, device=q.device)
        last = torch.arange(total - (count - sink), total, device=q.device)
        return Selection(torch.cat([first, last]).expand(q.shape[0], -1), size)

    def export(self, state: Any) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        return None

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {}
