"""Paired statistics against worked examples and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.runtime.evaluation.statistics import bootstrap, judge, keeps_within, paired, sign_test


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 2, 158 / 4096), (3, 3, 1.0)]
)
def test_the_sign_test_by_hand(only_one: int, only_other: int, p: float) -> None:
    assert sign_test(only_one, only_other) == pytest.approx(p)
    assert sign_test(only_other, only_one) == sign_test(only_one, only_other)


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_counts_all_coin_tosses(only_one: int, only_other: int) -> None:
    """The share of fair tosses at least as uneven as what was seen."""
    total = only_one + only_other
    uneven = abs(only_one - only_other)
    tosses = list(itertools.product((0, 1), repeat=total))
    as_uneven = sum(abs(2 * sum(toss) - total) >= uneven for toss in tosses)
    assert sign_test(only_one, only_other) == pytest.approx(as_uneven / len(tosses))


def test_the_sign_test_of_very_many_pairs() -> None:
    assert sign_test(3000, 3000) == 1.0
    assert sign_test(3000, 2000) < 1e-40


def test_paired_counts_and_gates() -> None:
    dense, other = np.array([1, 1, 1, 0, 0.5]), np.array([1, 0, 0.5, 1, 0.5])
    found = paired(dense, other, np.arange(5))
    assert (found.only_dense, found.only_other) == (2, 1)
    assert found.difference == pytest.approx(-0.1)
    assert found.interval is not None
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.gates
    assert found.loses_at_most(0.05) is None  # three pairs prove nothing
    assert not paired(np.array([0.0, 0.5]), np.array([0.0, 0.5]), np.arange(2)).gates


def test_a_loss_needs_size_and_certainty() -> None:
    dense, many = np.ones(100), np.arange(100)
    assert paired(dense, dense - (many < 10), many).loses_at_most(0.05) is False
    assert paired(dense, dense - (many < 5), many).loses_at_most(0.05) is None
    assert paired(dense, dense - (many < 1), many).loses_at_most(0.05) is True


def test_a_great_loss_needs_few_contexts() -> None:
    """Half of the answers in each of five contexts: no sign test can say so, the interval does."""
    dense, other = np.ones(40), np.tile([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 5)
    found = paired(dense, other, np.repeat(np.arange(5), 8))
    assert found.p_value > 0.05
    assert found.loses_at_most(0.05) is False
    assert paired(dense[:16], other[:16], np.repeat([0, 1], 8)).loses_at_most(0.05) is None


def test_no_difference_in_few_samples_proves_little() -> None:
    """The rule of three: nothing lost in n contexts bounds the loss at 3 / n."""
    few, many = paired(np.ones(4), np.ones(4), np.arange(4)), paired(np.ones(400), np.ones(400), np.arange(400))
    assert few.interval == (-0.75, 0.75)
    assert paired(np.ones(2), np.ones(2), np.arange(2)).interval == (-1, 1)
    assert few.loses_at_most(0.05) is None
    assert many.loses_at_most(0.05) is True


@pytest.mark.parametrize("contexts", [4, 60, 300])
def test_another_loss_never_makes_the_worst_case_better(contexts: int) -> None:
    dense, names = np.ones(contexts), np.arange(contexts)
    found = [paired(dense, dense - (names < lost), names).interval for lost in range(4)]
    lows = [interval[0] for interval in found if interval is not None]
    assert lows == sorted(lows, reverse=True)
    assert len(set(lows)) == len(lows) or lows[-1] == -1.0


def test_a_loss_that_was_seen_bounds_less_than_none() -> None:
    """None in 300 contexts is at most one in a hundred; one of them may well be more."""
    dense, names = np.ones(300), np.arange(300)
    assert paired(dense, dense, names).loses_at_most(0.01) is True
    assert paired(dense, dense - (names < 1), names).loses_at_most(0.01) is None


def test_items_of_one_cluster_are_one_observation() -> None:
    """Seven digits of one lost number are one loss."""
    dense, other = np.ones(70), np.repeat([0.0, *np.ones(9)], 7)
    found = paired(dense, other, np.repeat(np.arange(10), 7))
    assert (found.only_dense, found.clusters, found.p_value) == (7, 10, 1.0)
    assert found.loses_at_most(0.05) is None


def test_marks_are_missed_or_undecided() -> None:
    assert judge({"a": True, "b": False, "c": None}) == {"misses": ["b"], "undecided": ["c"]}


def test_the_interval_resamples_clusters() -> None:
    """A hundred tokens of each of two contexts are two observations, not two hundred."""
    values = np.repeat([0.0, 1.0], 100)
    assert bootstrap(values, np.repeat([0, 1], 100)) == (0.0, 1.0)
    interval = bootstrap(values, np.arange(200))
    assert interval is not None
    low, high = interval
    assert 0.4 < low < 0.5 < high < 0.6


@pytest.mark.parametrize("change", [-1.0, -0.01, 0.0, 0.01, 1.0])
def test_one_context_has_no_interval_and_decides_nothing(change: float) -> None:
    """However many items it has: seven digits of one context are one look at it."""
    dense, one = np.full(70, 0.5), np.zeros(70)
    assert bootstrap(dense + change, one) is None
    found = paired(dense, dense + change, one)
    assert found.interval is None
    assert found.as_dict()["interval"] is None
    assert [found.loses_at_most(margin) for margin in (0.0, 0.05, 0.5)] == [None] * 3
    assert keeps_within(np.array([change])) is None


@pytest.mark.parametrize("contexts", [2, 3])
@pytest.mark.parametrize("change", [-0.4, 0.0, 0.4])
def test_too_few_contexts_decide_nothing(contexts: int, change: float) -> None:
    dense, names = np.full(10 * contexts, 0.5), np.repeat(np.arange(contexts), 10)
    assert paired(dense, dense + change, names).loses_at_most(0.05) is None
    assert keeps_within(np.full(contexts, change)) is None


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5]), min_size=1, max_size=59))
def test_no_more_is_lost_takes_as_many_contexts_as_would_show_it(changes: list[float]) -> None:
    """Below 3 / 0.05 = 60 contexts nothing proves that less than 5 % is lost: neither gains nor small losses."""
    dense = np.full(len(changes), 0.5)
    assert paired(dense, dense + np.array(changes), np.arange(len(changes))).loses_at_most(0.05) is not True


@pytest.mark.parametrize("gains", [0, 1, 60])
def test_sixty_contexts_without_a_loss_lose_at_most_a_twentieth(gains: int) -> None:
    dense, contexts = np.full(60, 0.5), np.arange(60)
    assert paired(dense, dense + 0.5 * (contexts < gains), contexts).loses_at_most(0.05) is True
    assert paired(dense[:59], dense[:59], contexts[:59]).loses_at_most(0.05) is None


def test_a_mark_is_met_or_missed_where_the_interval_is_on_one_side() -> None:
    assert keeps_within(np.array([-0.2, -0.1, -0.3, 0.0])) is True
    assert keeps_within(np.array([0.2, 0.1, 0.3, 0.4])) is False
    assert keeps_within(np.array([-0.2, 0.1, -0.3, 0.4])) is None
    assert keeps_within(np.array([-0.2, np.nan])) is False  # an index that gives no numbers is not undecided


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="as many scores"):
        paired(np.ones(2), np.ones(3), np.arange(2))
    with pytest.raises(ValueError, match="at least one"):
        paired(np.ones(0), np.ones(0), np.arange(0))
