"""What several checks compare with is made once, and whatever went wrong then is told to each of them."""

from __future__ import annotations

import itertools
import weakref

import pytest

from stratakv.runtime.evaluation.suites.once import Once


def test_what_several_compare_with_is_made_once_and_lets_go_of_what_it_was_made_with() -> None:
    class Costly:
        def add(self) -> int:
            return next(counts)

    counts, made = itertools.count(7), Costly()
    gone = weakref.ref(made)
    once = Once(made.add)
    del made
    assert [once(), once()] == [7, 7]
    assert gone() is None


def test_what_cannot_be_made_fails_each_that_asks() -> None:
    once = Once(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            once()


def test_it_is_not_made_before_somebody_asks_nor_again_after_an_error() -> None:
    made: list[str] = []

    def fail() -> None:
        made.append("once")
        raise OSError("no room")

    once = Once(fail)
    assert made == []
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            once()
    assert made == ["once"]
