"""`louiskv`: ranks clusters by their centroids, and goes on with a choice until the query's direction turns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stratakv.retrieval import Index, IndexParams, make_index

PARAMS = IndexParams(page_size=4, sink=2, local=6)
KEYS = torch.randn(2, 48, 8, generator=torch.Generator().manual_seed(0))


def index_of(settings: str = "") -> Index:
    return make_index(f"louiskv:cluster=4{settings}", PARAMS)


def step(index: Index, state: Any, q: Tensor, budget: int = 16) -> list[list[int]]:
    """What a step reads. It is remembered."""
    chosen = index.select(state, q, state.tokens.codes.count + state.tokens.means.count * 4, budget)
    index.remember(state, chosen)
    return chosen.ids.tolist()


def towards(degrees: float) -> Tensor:
    """The same query for two KV heads of three query heads each, turned by so much."""
    angle = math.radians(degrees)
    return torch.tensor([math.cos(angle), math.sin(angle), 0, 0, 0, 0, 0, 0]).mul(4).expand(2, 3, 8)


def test_tokens_are_ranked_by_the_mean_key_of_their_cluster() -> None:
    """Naively: the softmax over clusters, its mean over query heads, each token with its cluster's."""
    index, q = index_of(), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    state = index.build(KEYS)
    assert state.tokens.centroids.shape[1] == 12
    for head, ids in enumerate(step(index, state, q, 20)):
        centroids = state.tokens.centroids[head].double()
        worth = torch.stack([torch.softmax(centroids @ one.double(), 0) for one in q[head]]).mean(0)
        cluster_of = [min(range(12), key=lambda c: float((key - centroids[c]).norm())) for key in KEYS[head].double()]
        forced = {*range(2), *range(42, 48)}
        best = sorted((at for at in range(48) if at not in forced), key=lambda at: (-float(worth[cluster_of[at]]), at))
        assert ids == sorted(forced | set(best[:12]))


def test_a_choice_holds_until_the_direction_turns() -> None:
    """Ten degrees a step are no turn, so even the fourth step reads what the first one chose; thirty are one."""
    index, fresh = index_of(":similar=0.95"), index_of()
    state = index.build(KEYS)
    first = step(index, state, towards(0))
    for degrees in (10, 20, 30):
        assert step(index, state, towards(degrees)) == first
    alone = {degrees: step(fresh, fresh.build(KEYS), towards(degrees)) for degrees in (30, 60)}
    assert alone[30] != first
    assert step(index, state, towards(60)) == alone[60] != first


def test_a_guess_is_no_step() -> None:
    index = index_of()
    state = index.build(KEYS)
    step(index, state, towards(0))
    learned = index.learned_by(state)
    index.select(state, towards(90), 48, 16)
    assert index.learned_by(state) is learned
    step(index, state, towards(90))
    index.unlearn(state, learned)
    assert index.learned_by(state) is learned


@pytest.mark.parametrize(("turns", "joins"), [([0, 2, 4, 6], 1), ([0, 2, 90, 92], 0), ([], 0)])
def test_a_page_goes_on_with_its_segment_where_no_step_turned(turns: list[int], joins: int) -> None:
    """Pages whose steps nobody saw are segments of their own."""
    index = index_of()
    state = index.build(KEYS[:, :24])
    for degrees in [0, 1, *turns]:
        step(index, state, towards(degrees))
        if degrees == 1:
            index.append(state, KEYS[:, 24:28])
    index.append(state, KEYS[:, 28:36])
    assert state.tokens.places.data.flatten().tolist() == [0, joins, 0]


def test_all_is_clustered_anew_when_the_sequence_has_doubled() -> None:
    index = index_of()
    state = index.build(KEYS[:, :24])
    index.append(state, KEYS[:, 24:44])
    assert not index.is_outgrown(state)
    index.append(state, KEYS[:, 44:])
    assert index.is_outgrown(state)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="cluster is at least 1 and similar -1 to 2, not 0"):
        make_index("louiskv:cluster=0", PARAMS)
