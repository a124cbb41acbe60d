"""The index that reads everything: the yardstick that every other index is measured against."""

from __future__ import annotations

from torch import Tensor

from ..index import Selection, StatelessIndex


class DenseIndex(StatelessIndex):
    """Idea   no selection at all.
    For    the yardstick, and texts that are short enough.
    State  none.
    Cost   select O(1), attention O(n).
    Note   the budget does not apply: `dense` reads all tokens whatever it is.
    """

    name = "dense"

    def select(self, state: None, q: Tensor, num_tokens: int, budget: int) -> Selection:
        return self.everything(q, num_tokens)
