"""The highest votes over all layers are counted by layer."""

from __future__ import annotations

import torch
from placed_text import placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows


def test_budgets_are_counts_of_one_choice_over_all_layers() -> None:
    one, text = placement("dynamickv"), plain_text(80)
    states = [seen(one, text, Rows(queries(8, seed=i) * (1 + i), 72, text)) for i in range(4)]
    wishes = [one.wish(state, text) for state in states]
    least, mean = 2 + 8, 12
    scores = torch.stack([one.scores(state, text)[:, 2:72] for state in states])
    lowest = scores.flatten().sort(descending=True).values[mean * 4 * 2 - 1]
    counts = (scores >= lowest).sum((1, 2))
    budgets = one.divide(wishes, least + mean)
    assert budgets == [least + int(count) // 2 for count in counts]
    assert len(set(budgets)) > 1
    for wish, scored in zip(wishes, scores, strict=True):
        assert torch.equal(wish[:, 2:72], scored)
        assert not wish[:, :2].isfinite().any(), "what stays anyway does not compete"
        assert not wish[:, 72:].isfinite().any()


def test_a_layer_has_at_most_so_many_times_the_mean() -> None:
    """One layer has all the highest votes."""
    loud, quiet = torch.full((2, 500), 0.5), torch.full((2, 500), 0.1)
    assert placement("dynamickv:most=3").divide([loud, quiet, quiet, quiet], 30)[0] == 10 + 60
    assert placement("dynamickv").divide([loud, quiet, quiet, quiet], 30)[0] == 10 + 80


def test_a_text_that_is_kept_whole_is_so_in_each_layer() -> None:
    wish = torch.full((2, 50), -torch.inf)
    wish[:, 2:42] = torch.rand(2, 40)
    assert placement("dynamickv").divide([wish, wish * 2, wish * 3], 50) == [50] * 3
