"""What a step that stays on the device reads by a ranking."""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.kernels.choose_units import choose_units
from stratakv.retrieval.scoring import Ranking, Rebuilt


def chosen_units(ranking: Ranking, scores: Tensor, num_tokens: int, budget: int) -> Tensor:
    """The units that each KV head reads of the first `num_tokens` tokens, int64 `[G, n]`; scores `[G, room]`."""
    total = num_tokens // ranking.unit
    most = min(total, budget // ranking.unit)
    totals, wanted = torch.full((len(scores),), total), torch.full((len(scores),), most)
    ids, counts = choose_units(scores, totals, wanted, most=most, sink=ranking.sink, local=ranking.local)
    assert (counts == most).all()
    return ids


def rebuilt_units(
    ranking: Ranking, q: Tensor, total: Tensor, num_units: int, wanted: int
) -> tuple[Tensor, Tensor, Rebuilt]:
    """What is read of `num_units` units, also told as `total` int64 `[1]`, where `wanted` are to be read: those that
    each KV head reads exactly, int64 `[G, n]`, how many these are, int64 `[G]`, and those that are rebuilt."""
    rebuilding, groups, few = ranking.rebuilding, len(q), torch.full_like(total, wanted)
    assert rebuilding is not None
    of_exact, of_rebuilt = rebuilding.most(num_units, wanted)
    exact, rebuilt = rebuilding.split(total, few)
    ids, counts = choose_units(
        ranking.scores(q, total), total.expand(groups), exact.expand(groups), most=of_exact, sink=ranking.sink,
        local=ranking.local,
    )  # fmt: skip
    return ids, counts, rebuilding.choose(q, total, ids, counts, rebuilt, of_rebuilt)
