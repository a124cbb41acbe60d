"""`rounds`: the present round, and those before with the most attention, for all heads alike."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexedLayer, IndexParams, make_index
from stratakv.retrieval.indexes.rounds import RoundsIndex, ranked

ROUNDS = (3, 5, 8)
WEIGHTS = torch.tensor([
    [[0.1, 0.1, 0.1, 0.0, 0.0, 0.3, 0.2, 0.1, 0.1, 0.0], [0.2, 0.0, 0.1, 0.1, 0.0, 0.1, 0.2, 0.2, 0.0, 0.1]],
    [[0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 0.4, 0.1, 0.1, 0.0], [0.0, 0.2, 0.1, 0.1, 0.0, 0.1, 0.2, 0.2, 0.0, 0.1]],
])  # fmt: skip
"""Of two KV heads with two query heads each. Rounds begin at 0, 3, 5 and 8, and have .3, .05, .55 and .1 on average."""


def chosen(budget: int, settings: str, rounds: tuple[int, ...] = ROUNDS, sink: int = 0) -> list[int]:
    params = IndexParams(page_size=2, sink=sink, local=0)
    index = make_index(f"rounds{settings}", params, IndexedLayer(place=3, count=6))
    assert isinstance(index, RoundsIndex)
    first, second = index.choose(WEIGHTS, budget, rounds).ids.tolist()
    assert first == second
    return list(first)


def test_rounds_by_hand() -> None:
    assert chosen(9, ":share=0.6") == [5, 6, 7, 8, 9], "the present one, and the one that makes .65 of it"
    assert chosen(9, ":share=0.7") == [0, 1, 2, 5, 6, 7, 8, 9]
    assert chosen(9, ":share=0.7", sink=4) == [0, 1, 2, 3, 5, 6, 7, 8, 9], "no more, though all of them fit"
    assert chosen(4, ":share=0.7") == [5, 6, 8, 9], "of the first that does not fit the best, here 0.25 and 0.15"
    assert chosen(3, ":share=1", (11, 14)) == [5, 6, 7], "one round: its best tokens"


def test_the_present_round_comes_first_and_no_more_than_needed_after_it() -> None:
    masses = torch.tensor([0.3, 0.05, 0.55, 0.1], dtype=torch.float64)
    assert ranked(masses, 0.05).tolist() == [0, 0, 0, 1]
    assert ranked(masses, 0.5).tolist() == [0, 0, 1, 2]
    assert ranked(masses, 0.9).tolist() == [1, 0, 2, 3]
    assert ranked(masses, 1).tolist() == [2, 1, 3, 4]
