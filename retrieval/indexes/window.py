"""The index that reads sinks and the most recent tokens: the floor (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..index import STATELESS_ROOM, Selection, StatelessIndex
from ..scoring import Ranking


class WindowIndex(StatelessIndex):
    """Idea   the first tokens anchor the softmax, the last ones carry the local context.
    For    the floor, and texts of which only the end matters.
    State  none.
    Cost   select O(1), attention O(budget).
    Differs  the whole budget goes to sinks and window, so that it reads as much as its rivals;
             positions stay those of the text instead of being renumbered inside the cache.
    """

    name = "window"

    def select(self, state: None, q: Tensor, num_tokens: int, budget: int) -> Selection:
        size = self.params.page_size
        total = num_tokens // size
        count = min(total, budget // size)
        sink = min(self.params.units(self.params.sink, size), count)
        first = torch.arange(sink, device=q.device)
        last = torch.arange(total - (count - sink), total, device=q.device)
        return Selection(torch.cat([first, last]).expand(q.shape[0], -1), size)

    def ranking(self, state: None) -> Ranking:
        size = self.params.page_size

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            return torch.arange(STATELESS_ROOM, dtype=torch.float32, device=q.device).expand(len(q), -1)

        sink, local = self.params.units(self.params.sink, size), self.params.units(self.params.local, size)
        return Ranking(unit=size, sink=sink, local=local, room=STATELESS_ROOM, scores=scores, reads=())
