"""Guessing goes on where it makes steps shorter, and stops where it does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stratakv.runtime.layers.worth import Worth


def guessed(seconds: Callable[[int, bool], float], steps: int) -> np.ndarray:
    """In which of so many steps `Worth` guesses, if they take `seconds(step, guessed)`."""
    worth, found = Worth(), []
    for step in range(steps):
        found.append(worth.try_it())
        worth.note(guessed=found[-1], seconds=seconds(step, found[-1]))
    return np.array(found)


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_the_shorter_way_is_taken_whatever_else_happens(gain: float) -> None:
    """Steps grow longer, every seventh is disturbed, and one of the better way, early on, by very much."""
    rng = np.random.default_rng(0)
    noise = rng.normal(1, 0.05, 500)
    noise[::7] *= 4
    noise[5 if gain < 1 else 4] = 90
    ways = guessed(lambda step, with_it: noise[step] * (1 + step / 100) * (gain if with_it else 1), 500)
    assert ways[:12].tolist() == [False, True] * 6
    assert (ways[12:] == (gain < 1)).mean() > 0.97


def test_it_is_tried_again_and_the_answer_may_change() -> None:
    """The links become slow in the middle."""
    ways = guessed(lambda step, with_it: 1.2 if with_it else 1 if step < 300 else 3, 1200)
    assert not ways[12:300].mean() > 0.05
    assert ways[-200:].mean() > 0.95


def test_the_first_step_of_all_says_nothing() -> None:
    worth = Worth()
    assert not worth.pays
    worth.note(guessed=worth.try_it(), seconds=9)
    assert not worth.pays
