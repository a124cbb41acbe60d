"""The index that reads everything: the yardstick that every other index is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from ..index import IndexOf, Selection
from ..stored import Geometry, Stored


class DenseIndex(IndexOf[None]):
    """Idea   no selection at all.
    For    the yardstick, and texts that are short enough.
    State  none.
    Cost   select O(1), attention O(n).
    Note   the budget does not apply: `dense` reads all tokens whatever it is.
    """

    name = "dense"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: None = None) -> None:
        return None

    def append(self, state: None, keys: Tensor, queries: Tensor | None = None) -> None:
        return None

    def truncate(self, state: None, num_tokens: int) -> None:
        return None

    def select(self, state: None, q: Tensor, num_tokens: int, budget: int) -> Selection:
        pages = torch.arange(num_tokens // self.params.page_size, device=q.device)
        return Selection(pages.expand(q.shape[0], -1), self.params.page_size)

    def export(self, state: None) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        return None

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {}
