"""A token's weight times its value."""

from __future__ import annotations

import torch
from placed_text import attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows


def test_scores_are_mass_times_the_magnitudes_of_values() -> None:
    one, text = placement("vatp"), plain_text(50)
    rows = Rows(queries(50), 0, text)
    expected = attention(rows).mean(1).sum(1) * text.values.abs().sum(-1)
    torch.testing.assert_close(one.scores(seen(one, text, rows), text), expected)


def test_of_equal_attention_the_larger_value_stays_but_first_tokens_do_anyway() -> None:
    one, text = placement("vatp:first=5:recent=0"), plain_text(40)
    text.keys.zero_()
    text.values.fill_(0.01)
    text.values[0, [20, 30]], text.values[1, [21, 31]] = 1.0, -1.0
    kept = one.keep(seen(one, text, Rows(queries(8), 32, text)), text, 11)
    assert kept[0].nonzero()[:, 0].tolist() == [*range(5), 20, 30, *range(36, 40)]
    assert kept[1].nonzero()[:, 0].tolist() == [*range(5), 21, 31, *range(36, 40)]
