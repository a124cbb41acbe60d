"""Paired statistics against worked examples and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratakv.runtime.evaluation.statistics import bootstrap, judge, paired, sign_test


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
    assert few.loses_at_most(0.05) is None
    assert many.loses_at_most(0.05) is True


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
    low, high = bootstrap(values, np.arange(200))
    assert 0.4 < low < 0.5 < high < 0.6
    assert bootstrap(values, np.repeat([7, 7], 100)) == (0.5, 0.5)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="as many scores"):
        paired(np.ones(2), np.ones(3), np.arange(2))
    with pytest.raises(ValueError, match="at least one"):
        paired(np.ones(0), np.ones(0), np.arange(0))
