"""A search of a box tree: as far as bounds and room allow, the best chunks are among what is ranked."""

from __future__ import annotations

import pytest
import torch
from closeness import poison_empty
from drawn_keys import clustered, whole_numbers
from torch import Tensor

from stratakv.kernels.page_bounds import bound_scores, page_bounds
from stratakv.retrieval.structures.box_tree import BoxTree
from stratakv.retrieval.structures.refine import Goal, Ranked, best_chunks


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def goal(first: int = 0, last: int = 10**6, *, wanted: int = 1, limit: int = 0) -> Goal:
    return Goal(first=first, last=last, wanted=wanted, limit=limit)


def search(keys: Tensor, of: Goal, sizes: tuple[int, ...] = (4, 16, 64)) -> Ranked:
    """For the query 1 of one head, and keys `[n]`."""
    return best_chunks(torch.ones(1, 1, 1), sizes, BoxTree.over(keys.view(1, -1, 1), sizes).levels, of)


def counted(ranking: Ranked) -> dict[int, float]:
    """The chunks of the first KV head that count, and their scores."""
    pairs = zip(ranking.ids[0].tolist(), ranking.scores[0].tolist(), strict=True)
    return {chunk: score for chunk, score in pairs if score > -torch.inf}


@pytest.mark.parametrize("seed", range(4))
def test_each_heads_best_are_ranked(seed: int) -> None:
    """Several query heads: bounds drop what all of them do without, and nothing that is among one's best."""
    keys, q = clustered(8192, seed=seed), whole_numbers(2, 3, 32, seed=seed + 2)
    sizes = (16, 64, 256)
    goal = Goal(first=0, last=8192, wanted=512, limit=0)
    ranking = best_chunks(q, sizes, BoxTree.over(keys, sizes).levels, goal)
    assert ranking.visited < 512 * 3 // 4
    best = bound_scores(q, page_bounds(keys, 16)).topk(32, -1).indices.flatten(1)
    ranked = ranking.ids.masked_fill(ranking.scores == -torch.inf, -1)
    for row, ids in zip(ranked.tolist(), best.tolist(), strict=True):
        assert set(ids) <= set(row)


def test_what_is_ruled_out_is_not_scored() -> None:
    """Of four boxes of 64 keys one alone reaches 6, which its own 64 keys are sure to: all below it is scored, and
    nothing below the others."""
    keys = torch.tensor([-9.0, 3.0, 6.0, 0.0]).repeat_interleave(64) + torch.linspace(-1, 1, 256)
    ranking = search(keys, goal(wanted=64))
    assert counted(ranking) == {32 + i: float(keys[128 + 4 * i + 3]) for i in range(16)}
    assert ranking.visited == 4 + 4 + 16


def test_what_is_chosen_anyway_is_no_promise() -> None:
    """Had the keys of the best box counted, the next best would have been dropped."""
    keys = torch.tensor([9.0, 5.0, 3.0, *[0.0] * 13]).repeat_interleave(64)
    assert set(counted(search(keys, goal(wanted=64)))) == {*range(16)}
    assert set(counted(search(keys, goal(first=16, wanted=64)))) == {*range(32)}
    assert set(counted(search(keys.flip(0), goal(last=1008, wanted=64)))) == {*range(224, 256)}


def test_no_more_is_kept_than_there_is_room_for() -> None:
    """Bounds rule out nothing here, so the boxes that could hold the highest key go on."""
    keys = torch.zeros(16 * 64)
    keys[[70, 300, 900]] = torch.tensor([5.0, 9.0, 7.0])
    ranking = search(keys, goal(wanted=8, limit=16))
    assert counted(ranking) == {75: 9.0, 72: 0.0, 73: 0.0, 74: 0.0}
    assert ranking.visited == 16 + 4 + 4
    assert len(counted(search(keys, goal(wanted=8)))) == 256


def test_goals_count_whole_boxes_between_what_is_chosen_anyway() -> None:
    some = goal(20, 200, limit=50)
    assert some.inner(16, 13) == (2, 12)
    assert some.inner(64, 4) == (1, 3)
    assert some.inner(64, 1) == (1, 1), "the one box there is holds tokens that are chosen anyway"
    assert some.room(16, 13) == 4 + 2 + 1, "four boxes for 50 tokens, and the outer ones"
    assert some.room(64, 3) == 2
    assert goal(20, 200).room(16, 13) == 13
