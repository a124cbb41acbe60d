"""Budgets fall from layer to layer, and their mean is what was asked for."""

from __future__ import annotations

from itertools import pairwise

import torch
from placed_text import placement, plain_text, seen

SHORT = torch.tensor([150.0])


def test_budgets_fall_linearly_and_their_mean_is_the_budget() -> None:
    one, text = placement("pyramidkv:window=8"), plain_text(5000)
    wish = one.wish(seen(one, text), text)
    least = 2 + 8
    budgets = one.divide([wish] * 11, 110)
    assert budgets[0] == least + 195, "2B - B/20, beside sinks and window"
    assert budgets[-1] == least + 5
    steps = [first - second for first, second in pairwise(budgets)]
    assert steps == [19] * 10
    assert sum(budgets) == 11 * 110


def test_a_short_text_makes_the_slope_flatter() -> None:
    one = placement("pyramidkv:window=8")
    budgets = one.divide([SHORT] * 11, 110)
    assert budgets == [150 - 8 * i for i in range(11)]
    assert one.divide([SHORT] * 11, 150) == [150] * 11
    assert one.divide([SHORT], 110) == [110]


def test_beta_of_one_is_snapkv() -> None:
    assert placement("pyramidkv:beta=1").divide([torch.tensor([5000.0])] * 3, 300) == [300] * 3
