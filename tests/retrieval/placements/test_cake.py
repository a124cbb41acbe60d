"""A layer's budget by entropy and variance of its attention, a token's score by mean and variance of its votes."""

from __future__ import annotations

import pytest
import torch
from placed_text import attention, placement, plain_text, queries, seen
from torch import Tensor

from stratakv.retrieval.placement import Placement, Rows

WINDOW = 8


@pytest.fixture
def one() -> Placement:
    return placement("cake:window=8:tau1=2:tau2=0.5")


def test_preference_and_scores_at_once(one: Placement) -> None:
    text = plain_text(60)
    rows = Rows(queries(WINDOW), 52, text)
    before = attention(rows)[..., :52].double()
    entropy = -(before * (before + 1e-10).log()).sum()
    variance = before.var(2).sum()
    state = seen(one, text, rows)
    expected = (entropy**0.5 * variance**2).float()
    torch.testing.assert_close(state["preference"][0], expected, rtol=1e-4, atol=1e-6)
    assert one.wish(state, text).tolist() == [state["preference"].item(), 60]
    votes = (before.mean(2) + 200 * before.var(2)).mean(1)
    padded = torch.nn.functional.pad(votes, (2, 2))
    smoothed = torch.stack([padded[:, i : i + 52] for i in range(5)]).mean(0).float()
    torch.testing.assert_close(one.scores(state, text)[:, :52], smoothed, rtol=1e-4, atol=1e-6)


def test_layers_that_spread_and_move_have_more(one: Placement) -> None:
    """Of four layers, one attends to one token, one always to the same half, one to another token with each query, and
    one at random; together they have four budgets."""
    text = plain_text(60, dim=64)
    text.keys.zero_()
    text.keys[:, :, :60] = torch.eye(60)

    def wish(q: Tensor) -> Tensor:
        return one.wish(seen(one, text, Rows(q, 52, text)), text)

    narrow, half, moving = (torch.zeros(2, 3, WINDOW, 64) for _ in range(3))
    narrow[..., 7] = 30
    half[..., :30] = 30
    for row in range(WINDOW):
        moving[:, :, row, row * 6 : row * 6 + 6] = 30
    given = one.divide([wish(narrow), wish(half), wish(moving), wish(queries(WINDOW, dim=64) * 3)], 30)
    least = 2 + WINDOW
    assert given[:2] == [least, least]
    assert min(given[2:]) > 2 * least
    assert sum(given) in (119, 120)
    assert max(given) <= 60


def test_a_reply_votes_but_does_not_change_the_preference(one: Placement) -> None:
    text = plain_text(60)
    state = seen(one, text, Rows(queries(WINDOW), 52, text))
    after = one.observe(state, Rows(queries(WINDOW, seed=3), 52, text._replace(prompt=44)))
    assert after["preference"] is state["preference"]
    assert not torch.equal(after["votes"], state["votes"])
    single = one.observe(state, Rows(queries(1), 59, text))
    assert bool(single["votes"].isfinite().all()), "one query has no variance"
