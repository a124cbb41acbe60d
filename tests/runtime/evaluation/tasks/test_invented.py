"""Invented things repeat neither each other nor themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import islice

import pytest

from stratakv.runtime.evaluation.tasks import invented


def test_draws_without_repeats_end_when_there_is_no_other() -> None:
    rng = random.Random(0)
    draws = invented.unique(lambda: rng.choice("abc"))
    assert sorted(islice(draws, 3)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no new value in"):
        next(draws)


def test_none_contains_another_whatever_the_case() -> None:
    draws = iter(["Ann", "anna", "AN", "Bob", "bo", "Cyd"])
    assert invented.distinct(lambda: next(draws), 3) == ["Ann", "Bob", "Cyd"]


@pytest.mark.parametrize("digits", [1, 7])
def test_numbers_have_their_digits(digits: int) -> None:
    rng = random.Random(1)
    assert {len(invented.number(rng, digits)) for _ in range(200)} == {digits}


@pytest.mark.parametrize("make", [invented.uuid4, invented.person, invented.town, invented.number])
def test_the_same_seed_makes_the_same(make: Callable[[random.Random], object]) -> None:
    one, other = (make(random.Random(7)) for _ in range(2))
    assert one == other != make(random.Random(8))


def test_a_uuid_is_of_version_four() -> None:
    assert re.fullmatch(r"\w{8}-\w{4}-4\w{3}-[89ab]\w{3}-\w{12}", invented.uuid4(random.Random(3)))
