"""`oracle` reads the tokens with the most attention: no other index covers more with as many."""

from __future__ import annotations

import pytest
import torch
from closeness import poison_empty
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import INDEX_CASES, PAGES, PARAMS, SHAPES, draw, forced_pages, mass_of

from stratakv.retrieval import IndexParams, make_index


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def test_oracle_by_hand() -> None:
    keys = torch.tensor([[[0.0], [5.0], [1.0], [4.0], [2.0], [3.0], [0.0], [0.0]]])
    index = make_index("oracle", IndexParams(page_size=4, sink=1, local=1))
    state = index.build(keys)
    assert index.select(state, torch.tensor([[[1.0]]]), 8, 5).ids.tolist() == [[0, 1, 3, 5, 7]]
    assert index.select(state, torch.tensor([[[-1.0]]]), 8, 4).ids.tolist() == [[0, 2, 6, 7]]


@settings(max_examples=20, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), params=st.sampled_from(PARAMS), data=st.data())
def test_oracle_covers_the_most(
    seed: int, shape: tuple[int, int, int], params: IndexParams, data: st.DataObject
) -> None:
    """At as many tokens as each of the others reads."""
    keys, q = draw(shape, params, seed=seed, pages=data.draw(st.integers(forced_pages(params) + 2, PAGES)))
    total = keys.shape[1]
    oracle = make_index("oracle", params)
    ceiling = oracle.build(keys)
    for case in INDEX_CASES:
        index = case.make(params, shape)
        least = (forced_pages(params) + 1) * params.page_size
        chosen = case.select(index, index.build(keys), keys, q, total, data.draw(st.integers(least, total - 1)))
        if chosen.num_tokens < total:
            best = oracle.select(ceiling, q, total, chosen.num_tokens)
            assert best.num_tokens == chosen.num_tokens
            assert (mass_of(keys, q, best.ids, best.unit) >= mass_of(keys, q, chosen.ids, chosen.unit) - 1e-6).all()


def test_query_heads_have_one_vote_each() -> None:
    """A loud head against two quiet ones that agree: its scores are larger, its share is not."""
    index = make_index("oracle", IndexParams(page_size=1, sink=0, local=0))
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    q = torch.tensor([[[50.0, 0.0], [0.0, 4.0], [0.0, 4.0]]])
    assert index.select(index.build(keys), q, 3, 1).ids.tolist() == [[2]]


def test_a_budget_below_what_is_forced_goes_to_sinks_first() -> None:
    index = make_index("oracle", IndexParams(page_size=4, sink=3, local=2))
    state, q = index.build(-torch.arange(8.0).view(1, 8, 1)), torch.ones(1, 1, 1)
    assert [index.select(state, q, 8, budget).ids.tolist() for budget in (2, 4, 5, 6)] == [
        [[0, 1]], [[0, 1, 2, 7]], [[0, 1, 2, 6, 7]], [[0, 1, 2, 3, 6, 7]],
    ]  # fmt: skip
