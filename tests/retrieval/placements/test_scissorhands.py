"""Of the last queries, how many gave a token less than its share."""

from __future__ import annotations

import torch
from placed_text import attention, placement, plain_text, queries, seen
from torch import Tensor

from stratakv.retrieval.placement import Rows


def below(rows: Rows) -> Tensor:
    """For each token, how many of the rows of all query heads gave it less than 1/t of the t tokens they see."""
    weights = attention(rows)
    at = rows.start + torch.arange(rows.queries.shape[2])
    is_seen = (rows.text.positions[:, None] <= at[:, None]) & (rows.text.positions >= 0)[:, None]
    share = 1 / is_seen.sum(-1, keepdim=True)
    return ((weights < share[:, None]) & is_seen[:, None]).sum((1, 2)).float()


def test_counts_of_a_prompts_last_queries() -> None:
    """200 of them, more than are looked at together; one head has padding."""
    one, text = placement("scissorhands:window=200"), plain_text(230)
    positions = text.positions.clone()
    positions[1, :9] = -1
    rows = Rows(queries(200), 30, text._replace(positions=positions))
    assert one.rows == 200
    state = seen(one, text)
    state |= one.observe(state, rows)
    assert torch.equal(-one.scores(state, rows.text), below(rows))


def test_queries_before_the_window_do_not_count() -> None:
    """Pages of 16: after three, the first is out of a window of 32."""
    one, text, all_queries = placement("scissorhands:window=32"), plain_text(100), queries(100)
    state = seen(one, text)
    for begin in (52, 68, 84):
        state |= one.observe(state, Rows(all_queries[:, :, begin : begin + 16], begin, text))
    assert torch.equal(-one.scores(state, text), below(Rows(all_queries[:, :, 68:], 68, text)))


def test_what_is_steadily_attended_to_stays_rather_than_what_once_was_much() -> None:
    """One query gives token 5 nearly all of its weight, the others little more than their share to token 9. By the sum
    token 5 would be first; by how often, it is not."""
    one, text = placement("scissorhands:window=16:recent=0"), plain_text(40, dim=2)
    text.keys.zero_()
    text.keys[:, 5, 0], text.keys[:, 9, 1] = 1, 1
    q = torch.zeros(2, 3, 16, 2)
    q[:, :, 0, 0], q[:, :, 1:, 1] = 20, 1
    rows = Rows(q, 24, text)
    mass = attention(rows).mean(1).sum(1)
    assert bool((mass[:, 5] > mass[:, 9] * 0.9).all())
    kept = one.keep(seen(one, text, rows), text, 7)
    assert kept[0].nonzero()[:, 0].tolist() == [0, 1, 9, *range(36, 40)]
