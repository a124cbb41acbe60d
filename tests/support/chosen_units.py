"""What a step that stays on the device reads by a ranking."""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.kernels.choose_units import choose_units
from stratakv.retrieval.scoring import Ranking


def chosen_units(ranking: Ranking, scores: Tensor, num_tokens: int, budget: int) -> Tensor:
    """The units that each KV head reads of the first `num_tokens` tokens, int64 `[G, n]`; scores `[G, room]`."""
    total = num_tokens // ranking.unit
    most = min(total, budget // ranking.unit)
    totals, wanted = torch.full((len(scores),), total), torch.full((len(scores),), most)
    ids, counts = choose_units(scores, totals, wanted, most=most, sink=ranking.sink, local=ranking.local)
    assert (counts == most).all()
    return ids
