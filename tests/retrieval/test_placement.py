"""What every placement is given, and what it gives unless it knows better."""

from __future__ import annotations

import math

import torch
from placed_text import GROUPS, attention, logits, placement, plain_text, queries
from torch import Tensor

from stratakv.retrieval.placement import Change, Rows, pooled, shares


def weights_of(rows: Rows, change: Change | None = None) -> Tensor:
    found = torch.zeros(*rows.queries.shape[:3], rows.text.positions.shape[1])
    for at, columns, some in rows.weights(change):
        found[:, :, at - rows.start, columns] = some
    return found


def test_weights_in_blocks_are_those_at_once() -> None:
    """Of more rows than are looked at together, over columns some of which are no token."""
    text = plain_text(300)
    positions = text.positions.clone()
    positions[1, :5] = -1
    rows = Rows(queries(290), 10, text._replace(positions=positions))
    found = weights_of(rows)
    torch.testing.assert_close(found, attention(rows))
    assert bool((found[1, :, :, :5] == 0).all())


def test_heads_may_see_different_numbers_of_columns() -> None:
    """The last column that one of them sees is behind the last of another."""
    text = plain_text(40)
    positions = text.positions.clone()
    positions[1] += 20
    rows = Rows(queries(8), 24, text._replace(positions=positions))
    found = weights_of(rows)
    torch.testing.assert_close(found[0].sum(-1), torch.ones_like(found[0, :, :, 0]))
    torch.testing.assert_close(found, attention(rows))


def test_what_attention_has_summed_is_not_summed_again() -> None:
    """Sums that are off by log 2 halve all weights, so they were used; changed logits have other sums."""
    text = plain_text(40)
    rows = Rows(queries(8), 32, text)
    doubled = rows._replace(lse=logits(rows).logsumexp(-1) + math.log(2))
    torch.testing.assert_close(weights_of(doubled), attention(rows) / 2)
    torch.testing.assert_close(weights_of(doubled, lambda found, at, positions: found), attention(rows))


def test_logits_can_be_changed_before_the_softmax() -> None:
    text = plain_text(40)
    rows = Rows(queries(8), 32, text)

    def halved(found: Tensor, at: Tensor, positions: Tensor) -> Tensor:
        assert at.tolist() == list(range(32, 40))
        assert positions.shape == (GROUPS, found.shape[-1])
        return found / 2

    torch.testing.assert_close(weights_of(rows, halved), attention(rows._replace(queries=rows.queries / 2)))


def test_the_budget_is_kept_and_padding_never_is() -> None:
    one, text = placement("snapkv:window=4:pool=1"), plain_text(40)
    positions = text.positions.clone()
    positions[1, :30] = -1
    kept = one.keep({"votes": torch.zeros(GROUPS, 40)}, text._replace(positions=positions), 16)
    assert kept.sum(1).tolist() == [16, 10]
    assert not kept[1, :30].any()
    assert one.keep({"votes": torch.zeros(GROUPS, 40)}, text, 3)[0].sum() == 6, "forced ones stay, whatever the budget"


def test_pooling_counts_what_is_missing_as_nothing() -> None:
    torch.testing.assert_close(pooled(torch.tensor([[3.0, 0, 0, 6, 0]]), 3), torch.tensor([[1.0, 1, 2, 2, 2]]))


def test_shares_add_up_and_none_is_below_the_least() -> None:
    assert shares([1, 3], 100, 10) == [55, 145]
    assert shares([0, 0], 100, 10) == [100, 100]
    assert shares([1, 0], 10, 10) == [10, 10]


def test_shares_give_on_what_a_layer_has_no_tokens_for() -> None:
    assert shares([1, 2, 7], 100, 10, [120, 200, 120]) == [63, 116, 120], "189 of 270 are 79 too many for the third"
    assert shares([1, 1, 1], 100, 10, [100, 100, 100]) == [100, 100, 100]
    assert shares([0.1, 0.7, 0.2], 100, 10, [100, 100, 100]) == [100, 100, 100]
    assert shares([1, 2], 100, 10, [50, 60]) == [50, 60], "all have what they can use"
