"""Heads that search keep all, the others sinks, a window, and the mean of what went."""

from __future__ import annotations

import pytest
import torch
from placed_text import GROUPS, PARAMS, REPEATS, plain_text, seen
from torch import Tensor

from stratakv.retrieval.placement import Facts, Placement
from stratakv.retrieval.placement_registry import placement_spec
from stratakv.retrieval.placements.razor import RazorOptions, searching

COUNT, TEXT = 60, plain_text(60)
SCORES = {2: torch.tensor([[0.1, 0.0], [0.0, 0.3]]), 5: torch.tensor([[0.0, 0.2], [0.1, 0.4]]), 7: torch.zeros(2, 2)}
"""Echo and induction of six heads in three layers: 5.1 comes first by both, then 2.1."""


def razor(layer: int, spec: str = "razor:echo=0.1:induction=0.3", scores: dict[int, Tensor] | None = None) -> Placement:
    return placement_spec(spec).make(PARAMS, layer, Facts(REPEATS, SCORES if scores is None else scores))


def counts(budget: int, spec: str = "razor:echo=0.1:induction=0.3") -> list[list[int]]:
    return [razor(layer, spec).keep({}, TEXT, budget).sum(1).tolist() for layer in SCORES]


def test_heads_that_search_are_the_best_of_each_kind() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.0], [0.5, 0.1, 0.6, 0.0, 0.7]])
    assert searching(scores, RazorOptions(echo=0.2, induction=0.4)) == [1, 4, 2]
    assert searching(scores, RazorOptions(echo=0.4, induction=0.2)) == [1, 3, 4]


def test_they_keep_all_and_the_others_what_is_left() -> None:
    assert counts(30) == [[24, 24], [24, 60], [24, 24]], "half of it all is 90: one head fits"
    assert counts(40) == [[30, 60], [30, 60], [30, 30]]
    assert counts(9) == [[9, 9]] * 3
    assert counts(COUNT) == counts(2 * COUNT, "razor:induction=1") == [[60, 60]] * 3
    assert [razor(2, scores={}).keep({}, TEXT, 20).sum(1).tolist()] == [[20, 20]]
    window = razor(7).keep({}, TEXT, 30)[0].nonzero()[:, 0].tolist()
    assert window == [0, 1, *range(COUNT - 22, COUNT)]


def test_what_goes_is_remembered_as_its_mean() -> None:
    """In two steps, as a direct mean over all that went."""
    one = razor(5)
    state, at = seen(one, TEXT), torch.arange(COUNT)
    first = torch.ones(GROUPS, COUNT, dtype=torch.bool)
    assert one.leave(state, TEXT, first) == {}
    first[0, 10:20] = False
    state = {**state, **one.leave(state, TEXT, first)}
    later = TEXT._replace(positions=at.expand(GROUPS, -1).masked_fill(~first, -1))
    second = first & ~((at >= 20) & (at < 25))
    state = {**state, **one.leave(state, later, second)}
    found = one.rest(state)
    assert found is not None
    for g, gone in enumerate((slice(10, 25), slice(20, 25))):
        torch.testing.assert_close(found[0][g], TEXT.keys[g, gone].mean(0))
        torch.testing.assert_close(found[1][g], TEXT.values[g, gone].mean(0))
    assert found[2].tolist() == [15, 5]


def test_settings_have_ranges() -> None:
    with pytest.raises(ValueError, match="echo is a share"):
        razor(2, "razor:echo=2")
