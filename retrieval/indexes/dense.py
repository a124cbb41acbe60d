"""The index that reads everything: the yardstick that every other index is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..index import Index, Selection
from ..stored import Geometry, Stored


class DenseIndex(Index):
    """Idea   no selection at all.
    State  none.
    Cost   select O(1), attention O(n).
    Note   the budget does not apply: `dense` reads all tokens whatever it is.
    """

    name = "dense"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: Any = None) -> None:
        return None

    def append(self, state: Any, keys: Tensor, queries: Tensor | None = None) -> None:
        return None

    def truncate(self, state: Any, num_tokens: int) -> None:
        return None

    def select(self, state: Any, q: Tensor, num_tokens: int, budget: int) -> Selection:
        pages = torch.arange(num_tokens // self.params.page_size, device=q.device)
        return Selection(pages.expand(q.shape[0], -1), self.params.page_size)

    def export(self, state: Any) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        return None

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {}
