"""Heavy hitters are what all queries together attended to."""

from __future__ import annotations

import torch
from placed_text import attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows


def test_mass_is_the_sum_of_all_weights() -> None:
    """Of a whole prompt in two pieces, by the mean over the query heads of a KV head."""
    one, text, all_queries = placement("h2o"), plain_text(150), queries(150)
    whole = Rows(all_queries, 0, text)
    state = seen(one, text)
    for begin, end in ((0, 140), (140, 150)):
        state |= one.observe(state, Rows(all_queries[:, :, begin:end], begin, text))
    torch.testing.assert_close(one.scores(state, text), attention(whole).mean(1).sum(1))


def test_half_of_the_budget_is_recent_and_the_rest_heavy() -> None:
    one, text = placement("h2o"), plain_text(60)
    mass = torch.zeros(2, 60)
    mass[0, [10, 20, 30]], mass[1, [11, 21, 31]] = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    kept = one.keep({"mass": mass}, text, 10)
    assert kept[0].nonzero()[:, 0].tolist() == [0, 1, 10, 20, 30, *range(55, 60)]
    assert kept[1].nonzero()[:, 0].tolist() == [0, 1, 11, 21, 31, *range(55, 60)]
