"""A prompt's last queries vote, and neighbours of what they voted for stay with it."""

from __future__ import annotations

import torch
from placed_text import attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows


def test_votes_are_the_mean_weights_of_the_last_queries_smoothed() -> None:
    one, text = placement("snapkv:window=8:pool=3"), plain_text(50)
    rows = Rows(queries(8), 42, text)
    assert one.rows == 8
    votes = attention(rows).mean((1, 2))
    padded = torch.nn.functional.pad(votes, (1, 1))
    smoothed = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
    torch.testing.assert_close(one.scores(seen(one, text, rows), text), smoothed)


def test_earlier_votes_do_not_count() -> None:
    one, text = placement("snapkv:window=8"), plain_text(50)
    rows = Rows(queries(8), 42, text)
    before = {"votes": torch.rand(2, 50)}
    assert torch.equal(one.observe(before, rows)["votes"], seen(one, text, rows)["votes"])


def test_the_window_itself_stays() -> None:
    one, text = placement("snapkv:window=8:pool=1"), plain_text(50)
    votes = torch.zeros(2, 50)
    votes[:, 25] = 1
    kept = one.keep({"votes": votes}, text, 11)
    assert kept[0].nonzero()[:, 0].tolist() == [0, 1, 25, *range(42, 50)]
