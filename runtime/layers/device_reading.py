"""What a step on the device reads of one layer of one sequence: how its index ranks, and which pages attention sees.

Shapes  G KV heads, R query heads each, D head dim, n units of a choice
"""

from __future__ import annotations

from torch import Tensor

from ...kernels.choose_units import choose_units
from ...retrieval.index import Index, IndexOf, Part
from ...retrieval.scoring import Ranking
from .pages import LayerPages
from .step_pages import StepPages, is_same
from .upkeep import IndexUpkeep


class DeviceReading:
    """Good while `is_current`, and from one page to the next as long as it `is_like` the one before.

    Args:
        pages, upkeep: of the layer.
        found: where attention sees those that are chosen.
        most: units that a step reads of each head, at most.
        num_pages: of the sequence, for which callers have room; there may be fewer.
    """

    def __init__(
        self, pages: LayerPages, upkeep: IndexUpkeep, ranking: Ranking, found: StepPages, most: int, num_pages: int
    ) -> None:  # fmt: skip
        self.ranking, self.pages, self.most, self.unit = ranking, found, most, ranking.unit
        self._own, self._upkeep, self._reads_all = pages, upkeep, not upkeep.index.has_budget
        self._made_of = pages.pids, upkeep.state
        self._columns = num_pages * pages.layout.page_size // ranking.unit
        self._departures = self._departed

    @property
    def is_current(self) -> bool:
        """Whether the pages are where they were, the store being still, and the index's state is the same."""
        pids, state = self._made_of
        are_there = self.pages.are_there and (self.pages.waits or self._departures == self._departed)
        return pids is self._own.pids and state is self._upkeep.state and are_there

    @property
    def _departed(self) -> tuple[int, int]:
        store = self._own.store
        assert store.gpu is not None
        return store.gpu.departures, store.host.departures

    def is_like(self, other: DeviceReading) -> bool:
        """Whether what was recorded with one reads the same with the other."""
        mine, its = self.ranking, other.ranking
        return (
            (self.most, self._columns, mine.unit, mine.sink, mine.local, mine.room)
            == (other.most, other._columns, its.unit, its.sink, its.local, its.room)
            and is_same(mine.reads, its.reads)
            and type(self.pages) is type(other.pages)
            and is_same(self.pages.reads, other.pages.reads)
        )

    def count(self, sealed: int, budget: int) -> int:
        """Units of each head that are read of so many tokens, within a budget in tokens."""
        total = sealed // self.unit
        return total if self._reads_all else min(total, budget // self.unit, self.most)

    def choose(self, query: Tensor, total: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The units to read, int64 `[G, most]`, and how many of each head count, int64 `[G]`.

        Args:
            query: `[G, R, D]`, rotated and scaled, fp32. total, wanted: int64 `[1]`, the units there are and those to
                be read.
        """
        ranking, groups = self.ranking, len(query)
        wanted = total if self._reads_all else wanted
        scores = ranking.scores(query, total)[:, : self._columns]
        return choose_units(
            scores, total.expand(groups), wanted.expand(groups), most=self.most, sink=ranking.sink, local=ranking.local
        )


def can_be_read(index: Index) -> bool:
    """Whether a step of a layer with this index can be the device's: exact attention over what one layer chose."""
    return type(index).attend is IndexOf.attend and index.part is Part.ALONE and not index.remembers
