"""Layers that change hidden states least keep least, the total stays."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from placed_text import placement, plain_text, seen
from torch import Tensor

from stratakv.retrieval.placements.squeeze import most_alike

ONE = placement("squeeze:p=0.25")


def wishes(cosines: list[float], count: int = 1000) -> list[Tensor]:
    return [torch.tensor([cosine, count]) for cosine in cosines]


def test_three_kinds_are_the_best_there_are() -> None:
    """Beside every way to put the layers into three kinds."""
    values = torch.rand(7, generator=torch.Generator().manual_seed(2)).tolist()

    def cost(kinds: tuple[int, ...]) -> float:
        total = 0.0
        for kind in range(3):
            some = [value for value, own in zip(values, kinds, strict=True) if own == kind]
            mean = sum(some) / len(some) if some else 0.0
            total += sum((value - mean) ** 2 for value in some)
        return total

    best = min(product(range(3), repeat=7), key=cost)
    top = best[values.index(max(values))]
    assert most_alike(values) == {place for place, kind in enumerate(best) if kind == top}
    assert most_alike([0.5, 0.5]) == most_alike([0.7]) == set()
    assert most_alike([0.5, 0.9]) == {1}


def test_layers_that_change_least_give_to_the_others() -> None:
    assert ONE.divide(wishes([0.2, 0.99, 0.6, 0.98, 0.61, 0.21]), 100) == [137, 26, 137, 26, 137, 137]
    assert sum([137, 26, 137, 26, 137, 137]) == 600


def test_nothing_is_given_that_a_text_does_not_have() -> None:
    assert ONE.divide(wishes([0.2, 0.99, 0.6], 110), 100) == [110, 80, 110]
    assert ONE.divide(wishes([0.2, 0.99, 0.6], 100), 100) == [100, 100, 100]


def test_layers_of_which_nothing_is_known_are_equal() -> None:
    text = plain_text(30)
    assert ONE.divide([ONE.wish(seen(ONE, text), text)] * 3, 10) == [10] * 3


def test_a_wish_is_the_mean_over_all_rows_so_far() -> None:
    text, state = plain_text(30), ONE.start(*plain_text(0)[1:3])
    cosines = torch.rand(20)
    for some in cosines.split([5, 12, 3]):
        state = ONE.compare(state, some)
    torch.testing.assert_close(ONE.wish(state, text), torch.tensor([cosines.mean().item(), 30.0]))


def test_settings_have_ranges() -> None:
    with pytest.raises(ValueError, match="p is a share above 0"):
        placement("squeeze:p=0")
    with pytest.raises(ValueError, match="recent is a share"):
        placement("squeeze:recent=2")
