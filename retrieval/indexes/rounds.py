"""Rounds of a dialogue (Round Attention, arXiv 2502.15294): one layer finds those that matter, others read these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.topk_pages import topk_pages
from ..index import Selection
from ..layer import IndexedLayer
from ..params import IndexParams
from .choosing import ChoosingIndex


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundsOptions:
    """Settings of `RoundsIndex`."""

    watershed: int = 0
    """The layer that chooses, counted among those that have an index, from 0; all before it read everything. 0: the one
    at half the depth."""
    share: float = 0.9
    """As few rounds are read as hold this share of the watershed layer's attention, if the budget has room for them."""

    def __post_init__(self) -> None:
        if self.watershed < 0 or not 0 < self.share <= 1:
            raise ValueError(f"watershed is at least 0 and share above 0 to 1, not {self.watershed} and {self.share}")


class RoundsIndex(ChoosingIndex):
    """Idea   a round is what a person says and what is answered. From some layer on, the watershed, all layers attend
             to the same rounds. Up to there everything is read; there the attention of each round's tokens is added
             up, and the layers above read the rounds with the most, as many as hold most of it, and the present one.
    For    long chats about many things, of which a question concerns few.
    State  none.
    Cost   select O(1); attention O(n) in the layers up to the watershed, O(budget) above.
    Paper  arXiv 2502.15294
    Differs  reconstructed from the paper's abstract and a note. Which layer is the watershed depends on the model and
             has to be measured; half the depth is a guess. The paper chooses once for a question; here each step
             does, by its own attention, so nothing of a choice must be kept. A round begins where a prompt comes
             after a reply; prompts in a row are one. Rounds are added to the budget's end: of the first that does not
             fit, the tokens with the largest weights are read. All heads share the choice. Sinks and the local window
             are forced.
    """

    name = "rounds"
    Options = RoundsOptions

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: RoundsOptions) -> None:
        super().__init__(params, layer, options)
        self._watershed = options.watershed or layer.count // 2
        if self._watershed >= max(layer.count, 1):
            raise ValueError(
                f"rounds chooses in layer {self._watershed}, and {layer.count} layers have an index, counted from 0; "
                "set watershed"
            )

    @property
    def reading_all(self) -> set[int]:
        return set(range(self._watershed + 1))

    def choose(self, weights: Tensor, budget: int, rounds: Sequence[int]) -> Selection:
        groups, _, tokens = weights.shape
        worth = weights.double().mean((0, 1))
        starts = torch.tensor([0, *(at for at in rounds if at < tokens)], dtype=torch.int64, device=worth.device)
        round_of = torch.searchsorted(starts, torch.arange(tokens, device=worth.device), right=True) - 1
        belongs = round_of == torch.arange(len(starts), device=worth.device).unsqueeze(1)
        scores = ranked((belongs * worth).sum(1), self.options.share)[round_of] + worth / 2
        sink = min(self.params.sink, budget)
        local = min(self.params.local, budget - sink)
        wanted = scores >= 1
        wanted[:sink] = wanted[tokens - local :] = True
        count = min(budget, int(wanted.sum()))
        ids = topk_pages(scores.unsqueeze(0), count, sink=sink, local=local)
        return Selection(ids.expand(groups, -1).contiguous(), 1)


def ranked(masses: Tensor, share: float) -> Tensor:
    """The order in which rounds of such masses `[n]` are read, the last one first: the highest number comes first, and
    0 is not read."""
    order = masses.argsort(descending=True, stable=True)
    order = torch.cat([order.new_tensor([len(masses) - 1]), order[order != len(masses) - 1]])
    held = masses[order].cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1
    ranks = torch.zeros_like(masses)
    ranks[order[:count]] = torch.arange(count, 0, -1, dtype=masses.dtype, device=masses.device)
    return ranks
