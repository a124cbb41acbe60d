"""The index that reads everything: the yardstick that every other index is measured against."""

from __future__ import annotations

from torch import Tensor

from ..index import STATELESS_ROOM, Selection, StatelessIndex
from ..scoring import Ranking


class DenseIndex(StatelessIndex):
    """Idea   no selection at all.
    For    the yardstick, and texts that are short enough.
    State  none.
    Cost   select O(1), attention O(n).
    Note   the budget does not apply: `dense` reads all tokens whatever it is.
    """

    name = "dense"
    has_budget = False

    def select(self, state: None, q: Tensor, num_tokens: int, budget: int) -> Selection:
        return self.everything(q, num_tokens)

    def ranking(self, state: None) -> Ranking:
        """All scores are equal, for whoever asks: all units are wanted."""

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            return q.new_zeros(1, 1).expand(len(q), STATELESS_ROOM)

        return Ranking(unit=self.params.page_size, sink=0, local=0, room=STATELESS_ROOM, scores=scores, reads=())
