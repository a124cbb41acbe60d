"""What a step on the device reads of one layer of one sequence: how its index ranks, and which pages attention sees.

Shapes  G KV heads, R query heads each, D head dim, n units of a choice
"""

from __future__ import annotations

from torch import Tensor

from ...kernels.choose_units import choose_units
from ...retrieval.index import Index, IndexOf, Part
from ...retrieval.scoring import Ranking, Rebuilt
from .pages import LayerPages
from .step_pages import StepPages, is_same
from .upkeep import IndexUpkeep


class DeviceReading:
    """Good while `is_current`, and from one page to the next as long as it `is_like` the one before.

    Args:
        pages, upkeep: of the layer.
        found: where attention sees the units that are chosen, and values of those whose keys are rebuilt, if any are.
        most: of either, units that a step reads of each head, at most.
        num_pages: of the sequence, for which callers have room; there may be fewer.
        departed: from before anything was found.
    """

    def __init__(
        self, pages: LayerPages, upkeep: IndexUpkeep, ranking: Ranking, found: list[StepPages], most: list[int],
        num_pages: int, departed: tuple[int, int],
    ) -> None:  # fmt: skip
        self.ranking, self.found, self.most, self.pages, self.unit = ranking, found, most, found[0], ranking.unit
        self._own, self._upkeep, self._reads_all = pages, upkeep, not upkeep.index.has_budget
        self._made_of = pages.pids, upkeep.state
        self._columns = num_pages * pages.layout.page_size // ranking.unit
        self._departed = departed

    @property
    def waits(self) -> bool:
        """Whether the host finds some of it."""
        return any(pages.waits for pages in self.found)

    @property
    def values(self) -> StepPages | None:
        """Where attention sees values whose keys are rebuilt; None: none are."""
        return self.found[1] if len(self.found) > 1 else None

    @property
    def is_current(self) -> bool:
        """Whether the pages are where they were, the store being still, and the index's state is the same."""
        pids, state = self._made_of
        are_there = all(pages.are_there for pages in self.found) and (
            self.waits or self._departed == departures(self._own)
        )
        return pids is self._own.pids and state is self._upkeep.state and are_there

    def is_like(self, other: DeviceReading) -> bool:
        """Whether what was recorded with one reads the same with the other."""
        mine, its = self.ranking, other.ranking
        return (
            (self.most, self._columns, mine.unit, mine.sink, mine.local, mine.room)
            == (other.most, other._columns, its.unit, its.sink, its.local, its.room)
            and is_same(mine.reads, its.reads)
            and all(
                type(a) is type(b) and is_same(a.reads, b.reads) for a, b in zip(self.found, other.found, strict=True)
            )
        )

    def counts(self, sealed: int, budget: int) -> list[int]:
        """Units of each head that are read of so many tokens, within a budget in tokens: of each of `found`."""
        total, rebuilding = sealed // self.unit, self.ranking.rebuilding
        if rebuilding is not None:
            return list(rebuilding.split(total, budget // self.unit))
        return [total if self._reads_all else min(total, budget // self.unit, self.most[0])]

    def choose(self, query: Tensor, total: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The units to read with their keys, int64 `[G, most]`, and how many of each head count, int64 `[G]`.

        Args:
            query: `[G, R, D]`, rotated and scaled, fp32. total, wanted: int64 `[1]`, the units there are and those to
                be read.
        """
        ranking, groups = self.ranking, len(query)
        wanted = total if self._reads_all else wanted
        if ranking.rebuilding is not None:
            wanted = ranking.rebuilding.split(total, wanted)[0]
        scores = ranking.scores(query, total)[:, : self._columns]
        return choose_units(
            scores, total.expand(groups), wanted.expand(groups), most=self.most[0], sink=ranking.sink,
            local=ranking.local,
        )  # fmt: skip

    def rebuild(self, query: Tensor, total: Tensor, wanted: Tensor, ids: Tensor, counts: Tensor) -> Rebuilt:
        """The units that are read besides those that `choose` gave, with keys of their own. There are such `values`."""
        rebuilding = self.ranking.rebuilding
        assert rebuilding is not None
        few = rebuilding.split(total, wanted)[1]
        return rebuilding.choose(query, total, ids, counts, few, self.most[1])


def departures(pages: LayerPages) -> tuple[int, int]:
    """Times that pages of anybody have left the device pool and host memory."""
    assert pages.store.gpu is not None
    return pages.store.gpu.departures, pages.store.host.departures


def can_be_read(index: Index) -> bool:
    """Whether a step of a layer with this index can be the device's: attention over what one layer chose, exact or with
    keys that are rebuilt."""
    attends = type(index).attend is IndexOf.attend or index.reads_values_alone
    return attends and index.part is Part.ALONE and not index.remembers
