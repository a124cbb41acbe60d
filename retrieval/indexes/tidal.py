"""Position persistence (TidalDecode, arXiv 2410.05076): two layers find the tokens that matter, others read these."""

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
class TidalOptions:
    """Settings of `TidalIndex`; layers are counted among those that have an index, from 0."""

    first: int = 0
    """The layer that chooses first; those before it read everything. 0: as deep as the published layer 2 of 32."""
    again: int = 0
    """The layer that chooses again. 0: as deep as the published layer 9 of 32."""
    most: int = 0
    """0: a token is worth the sum of its weights over the query heads of a KV head; 1: the largest one."""

    def __post_init__(self) -> None:
        if min(self.first, self.again) < 0 or self.most not in (0, 1):
            raise ValueError(
                f"first and again are at least 0 and most 0 or 1, not {self.first}, {self.again} and {self.most}"
            )


class TidalIndex(ChoosingIndex):
    """Idea   which tokens have high attention persists from layer to layer. The first layers read everything; the last
             of them takes its best tokens by exact attention, and the layers after it read just these. Further up one
             layer reads everything once more and chooses anew.
    For    models whose layers attend to the same tokens as the layer that chooses, found by measuring.
    State  none.
    Cost   select O(1); attention O(n) in the layers that read everything, 4 of 32, O(budget) in the others.
    Paper  arXiv 2410.05076
    Differs  one choice per KV head, by the sum of weights over its query heads: the published kernels have one KV head
             for each query head, and so take the best tokens of each. Sinks and the local window are forced.
             The layer that chooses again is another one for each model in the paper; here it is as deep as in its
             code. Choosing layers are counted among those that keep all of a text: layers with windows or states are
             passed over.
    """

    name = "tidal"
    Options = TidalOptions

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: TidalOptions) -> None:
        super().__init__(params, layer, options)
        count, (first, again) = layer.count, (options.first, options.again)
        self._first = first or max(1, scaled(2, 32, count))
        self._again = again or max(self._first, scaled(9, 32, count))
        if (first or again) and not self._first <= self._again < count:
            raise ValueError(
                f"tidal chooses in layers {self._first} and {self._again}, which must be in this order among the "
                f"{count} layers that have an index, counted from 0; set first and again"
            )

    @property
    def reading_all(self) -> set[int]:
        return {*range(self._first + 1), self._again}

    def choose(self, weights: Tensor, budget: int, rounds: Sequence[int]) -> Selection:
        worth = weights.amax(1) if self.options.most else weights.sum(1)
        sink = min(self.params.sink, budget)
        return Selection(topk_pages(worth, budget, sink=sink, local=min(self.params.local, budget - sink)), 1)
