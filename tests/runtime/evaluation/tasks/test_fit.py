"""The largest text that fits, found with few texts counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.runtime.evaluation.tasks.fit import Fit


def counting(tokens: int, made: list[int], each: Callable[[int], int]) -> tuple[Fit, Callable[[int], str]]:
    """A text of n items is n written down; it has `each(n)` tokens."""

    def make(items: int) -> str:
        made.append(items)
        return str(items)

    return Fit(tokens, lambda text: each(int(text))), make


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 300), st.integers(300, 100_000))
def test_one_more_would_not_fit(per_item: int, overhead: int, tokens: int) -> None:
    made: list[int] = []
    fit, make = counting(tokens, made, lambda items: overhead + per_item * items)
    if overhead + per_item > tokens:
        with pytest.raises(ValueError, match="the shortest text of this task has"):
            fit.largest(make)
        return
    assert fit.largest(make) == (tokens - overhead) // per_item
    assert len(made) <= 8


def test_a_limit_and_a_smallest_number() -> None:
    fit, make = counting(1000, [], lambda items: 10 * items)
    assert fit.largest(make, limit=7) == 7
    assert fit.largest(make, smallest=100) == 100
    with pytest.raises(ValueError, match="has 1010 tokens, more than the 1000 asked for"):
        fit.largest(make, smallest=101)


def test_lengths_that_jump() -> None:
    fit, make = counting(500, [], lambda items: items if items < 90 else 10_000)
    assert fit.largest(make) == 89
