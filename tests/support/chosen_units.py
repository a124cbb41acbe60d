"""What a step reads by scores: the contract of `kernels/choose_units.py`, row by row."""

from __future__ import annotations

from torch import Tensor

from stratakv.retrieval.scoring import Ranking


def chosen_units(ranking: Ranking, scores: Tensor, total: int, budget: int) -> list[list[int]]:
    """The units that each KV head reads of the first `total`, ascending; scores `[G, room]`, budget in tokens."""
    wanted, forced = min(total, budget // ranking.unit), {*range(ranking.sink), *range(total - ranking.local, total)}
    return [
        sorted(sorted(range(total), key=lambda unit: (unit not in forced, -row[unit]))[:wanted])
        for row in scores.tolist()
    ]
