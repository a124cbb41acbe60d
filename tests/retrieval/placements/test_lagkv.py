"""What lies wide apart by the measure of the next partition stays, the same share of each partition."""

from __future__ import annotations

import pytest
import torch
from placed_text import PlainText, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows
from stratakv.retrieval.placements.lagkv import UNJUDGED, lag_scores

LAG, SINK = 8, 2


def rows_of(text: PlainText) -> Rows:
    return Rows(queries(1), text.positions.shape[1] - 1, text)


def test_scores_are_those_of_the_formula() -> None:
    some, following = torch.randn(2, 2, 2, LAG, 6).unbind(0)
    expected = torch.zeros(2, LAG)
    for side in range(2):
        for group in range(2):
            spread = []
            for token in range(LAG):
                seen_as = []
                for channel in range(6):
                    reach = [following[side, group, after, channel].item() for after in range(LAG)]
                    x = some[side, group, token, channel].item()
                    seen_as.append((x - min(reach)) / (max(reach) - min(reach)))
                mean = sum(seen_as) / 6
                spread.append((sum((x - mean) ** 2 for x in seen_as) / 5) ** 0.5)
            expected[group] += torch.tensor(spread).softmax(0) / 2
    torch.testing.assert_close(lag_scores(some, following), expected)


def test_each_partition_is_ranked_by_the_next_and_the_last_ones_wait() -> None:
    one, text = placement(f"lagkv:lag={LAG}"), plain_text(SINK + 4 * LAG + 3)
    ranks = seen(one, text, rows_of(text))["rank"]
    both = torch.stack([text.keys, text.values])
    for begin in (SINK, SINK + LAG, SINK + 2 * LAG):
        scores = lag_scores(both[:, :, begin : begin + LAG], both[:, :, begin + LAG : begin + 2 * LAG])
        order = ranks[:, begin : begin + LAG].argsort(1)
        assert torch.equal(order, scores.argsort(1))
        assert ranks[:, begin : begin + LAG].sort(1).values.tolist() == [[rank / LAG for rank in range(LAG)]] * 2
    assert (ranks[:, :SINK] == UNJUDGED).all()
    assert (ranks[:, SINK + 3 * LAG :] == UNJUDGED).all()


def test_each_partition_keeps_its_share() -> None:
    """A method that ranks over the whole text would keep the second partition, whose tokens are wild."""
    one, text = placement(f"lagkv:lag={LAG}"), plain_text(SINK + 4 * LAG)
    text.keys[:, SINK + LAG : SINK + 2 * LAG] *= 100
    kept = one.keep(seen(one, text, rows_of(text)), text, SINK + LAG + 3 * 2)
    assert kept[:, SINK:].unflatten(1, (4, LAG)).sum(2).tolist() == [[2, 2, 2, LAG]] * 2


def test_a_text_that_grows_is_judged_as_if_it_came_at_once() -> None:
    one, text = placement(f"lagkv:lag={LAG}"), plain_text(SINK + 5 * LAG)
    begin = PlainText(*(part[:, : SINK + 3 * LAG + 5] for part in text[:3]))
    known = seen(one, begin, rows_of(begin))
    rest = one.enter(text.keys[:, SINK + 3 * LAG + 5 :], text.values, text.positions)["rank"]
    grown = one.observe({"rank": torch.cat([known["rank"], rest], 1)}, rows_of(text))
    assert torch.equal(grown["rank"], seen(one, text, rows_of(text))["rank"])


def test_a_small_budget_is_a_window_and_settings_have_ranges() -> None:
    one, text = placement(f"lagkv:lag={LAG}"), plain_text(SINK + 4 * LAG)
    kept = one.keep(seen(one, text, rows_of(text)), text, SINK + 6)
    assert kept[0].nonzero()[:, 0].tolist() == [*range(SINK), *range(4 * LAG - 4, 4 * LAG + SINK)]
    with pytest.raises(ValueError, match="lag is 2 to 8192 tokens, not 1"):
        placement("lagkv:lag=1")
