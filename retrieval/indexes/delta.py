"""Layers that look (DELTA, arXiv 2510.09883): a few read everything and choose the pages of the layers after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...kernels.topk_pages import topk_pages
from ..index import Selection
from ..layer import IndexedLayer
from ..params import IndexParams
from .choosing import ChoosingIndex, scaled


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaOptions:
    """Settings of `DeltaIndex`; layers are counted among those that have an index, from 0."""

    first: int = 0
    """So many layers at the beginning read everything. 0: the share of the published 3 of 28."""
    middle: int = 0
    """A later layer that does. 0: as deep as the published layer 14 of 28."""
    late: int = 0
    """Another one. 0: as deep as the published layer 22 of 28."""
    recent: int = 8
    """So many last pages are read in any case, up to half of the budget."""

    def __post_init__(self) -> None:
        if min(self.first, self.middle, self.late, self.recent) < 0:
            raise ValueError(
                "first, middle, late and recent are at least 0, "
                f"not {self.first}, {self.middle}, {self.late} and {self.recent}"
            )


class DeltaIndex(ChoosingIndex):
    """Idea   a page that some head attends to is worth reading in the layers that come. Layers that read everything
             are spread over the model; the last one before others adds up, page by page, the largest weight that any
             head gives a token, and all heads of the layers after it read the pages that are worth most.
    For    budgets of many pages, where full attention in a few layers is no hardship.
    State  none.
    Cost   select O(1); attention O(n) in the layers that read everything, 5 of 28, O(budget) in the others.
    Paper  arXiv 2510.09883
    Differs  the published layers are those of one model of 28 layers; in others they are as deep. The last pages that
             are read in any case are the last sealed ones, so the open page comes on top; they are no more
             than half of a budget. Sinks are forced as well. Layers are counted among those that keep all of a
             text: layers with windows or states are passed over.
    """

    name = "delta"
    Options = DeltaOptions

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: DeltaOptions) -> None:
        super().__init__(params, layer, options)
        count = layer.count
        self._first = options.first or max(1, scaled(3, 28, count))
        self._later = {options.middle or scaled(14, 28, count), options.late or scaled(22, 28, count)}
        highest = max(self._first - 1, options.middle, options.late)
        if highest >= count:
            raise ValueError(
                f"delta reads everything in layer {highest}, and {count} layers have an index, counted from 0; set "
                "first, middle and late"
            )

    @property
    def reading_all(self) -> set[int]:
        return {*range(self._first), *self._later}

    def choose(self, weights: Tensor, budget: int, rounds: Sequence[int]) -> Selection:
        groups, _, tokens = weights.shape
        size, count = self.params.page_size, budget // self.params.page_size
        worth = weights.amax((0, 1)).view(1, tokens // size, size).sum(-1)
        sink = min(self.params.units(self.params.sink, size), count)
        recent = max(min(self.options.recent, count // 2), self.params.units(self.params.local, size))
        ids = topk_pages(worth, count, sink=sink, local=min(recent, count - sink))
        return Selection(ids.expand(groups, -1).contiguous(), size)
