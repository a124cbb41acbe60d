"""Choosing units: unique, sorted, forced ones included, the best of the rest."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kernels.topk_pages import group_scores, topk_pages

SCORES = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7, 0.3], [0.0, 0.5, 0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("count", "sink", "local", "expected"),
    [
        (2, 0, 0, [[0, 2], [1, 3]]),
        (3, 0, 1, [[0, 2, 5], [1, 3, 5]]),
        (3, 1, 1, [[0, 2, 5], [0, 1, 5]]),
        (4, 2, 1, [[0, 1, 2, 5], [0, 1, 3, 5]]),
        (3, 1, 2, [[0, 4, 5], [0, 4, 5]]),
        (6, 1, 2, [[0, 1, 2, 3, 4, 5]] * 2),
        (6, 3, 3, [[0, 1, 2, 3, 4, 5]] * 2),
        (0, 0, 0, [[], []]),
    ],
)
def test_by_hand(count: int, sink: int, local: int, expected: list[list[int]]) -> None:
    ids = topk_pages(SCORES, count, sink=sink, local=local)
    assert ids.dtype == torch.int64
    assert ids.tolist() == expected


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data(), total=st.integers(0, 70), groups=st.sampled_from([1, 2, 8]), ties=st.booleans())
def test_ids_are_the_forced_and_the_best(data: st.DataObject, total: int, groups: int, ties: bool) -> None:
    count = data.draw(st.integers(0, total))
    sink = data.draw(st.integers(0, count))
    local = data.draw(st.integers(0, count - sink))
    generator = torch.Generator().manual_seed(total)
    scores = torch.rand(groups, total, generator=generator)
    scores = scores.mul(3).floor() if ties else scores
    ids = topk_pages(scores, count, sink=sink, local=local)
    assert ids.shape == (groups, count)
    assert (ids.diff() > 0).all(), "ascending, so unique"
    assert ids.numel() == 0 or (ids.min() >= 0 and ids.max() < total)
    for row, score in zip(ids.tolist(), scores.tolist(), strict=True):
        forced = {*range(sink), *range(total - local, total)}
        assert forced <= set(row)
        free = sorted((score[i] for i in range(total) if i not in forced), reverse=True)
        assert sorted((score[i] for i in set(row) - forced), reverse=True) == free[: count - len(forced)]


def test_of_equal_scores_a_cpu_takes_the_first() -> None:
    scores = torch.tensor([[5.0, 1, 2, 1, 1, 3, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    assert topk_pages(scores, 5, sink=1, local=1).tolist() == [[0, 1, 2, 5, 7], [0, 1, 2, 3, 7]]


def test_scores_that_are_not_numbers_still_give_a_selection() -> None:
    scores = torch.full((2, 20), torch.nan)
    scores[1] = torch.arange(20.0)
    ids = topk_pages(scores, 6, sink=1, local=2)
    assert ids[1].tolist() == [0, 15, 16, 17, 18, 19]
    assert (ids.diff() > 0).all()
    assert ids.max() < 20


@pytest.mark.parametrize(("count", "sink", "local"), [(3, 2, 2), (7, 0, 0), (1, 0, 2)])
def test_what_cannot_be_chosen_is_refused(count: int, sink: int, local: int) -> None:
    with pytest.raises(ValueError, match=rf"{sink} \+ {local}, {count}, 6"):
        topk_pages(SCORES, count, sink=sink, local=local)


@pytest.mark.parametrize("repeats", [1, 3, 4, 8])
def test_group_scores_are_means_of_softmaxes(repeats: int) -> None:
    """Each query head has one vote: a head with large scores does not drown the others."""
    scores = torch.randn(2, repeats, 11, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([sum(row.exp() / row.exp().sum() for row in group) / repeats for group in scores])
    assert_close("scores", group_scores(scores), expected)
    loud = torch.tensor([[[100.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]])
    assert group_scores(loud).argmax(-1).tolist() == [1]
