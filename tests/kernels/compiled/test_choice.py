"""The choice among compiled scores: the reference's selection, of equal ones the first."""

from __future__ import annotations

import pytest
import torch
from compiled_scores import Scored
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.topk_pages import topk_pages

drawn = settings(max_examples=40, derandomize=True, deadline=None)


def whole_powers(groups: int, repeats: int, units: int, span: int, powers: Tensor, halvings: Tensor) -> Scored:
    """Scores whose group scores are exact: powers are whole numbers, a part's maximum so many halvings down; the
    parts' sums are such that all of a head is one."""
    scored = Scored(groups, repeats, units, span)
    rows = scored.powers.data.reshape(groups, repeats, scored.room)
    rows[..., :units] = powers.numpy()
    tops = scored.tops.data.reshape(groups, repeats, scored.parts, 2)
    tops[..., 0], tops[..., 1] = -halvings.numpy(), 0
    tops[..., 0, 0], tops[..., 0, 1] = 0, 1
    return scored


@drawn
@given(
    data=st.data(), groups=st.integers(1, 3), repeats=st.integers(1, 5), units=st.integers(1, 400),
    span=st.sampled_from([1, 16, 50, 400]), values=st.sampled_from([1, 2, 3, 1000]),
)  # fmt: skip
def test_exactly_the_best_and_of_equal_ones_the_first(
    data: st.DataObject, groups: int, repeats: int, units: int, span: int, values: int
) -> None:
    torch.manual_seed(units)
    parts = -(-units // span)
    powers = torch.randint(0, values, (groups, repeats, units)).float()
    halvings = torch.randint(0, 3, (groups, repeats, parts)).float()
    halvings[..., 0] = 0
    exact = (powers * 2 ** -halvings.repeat_interleave(span, 2)[..., :units]).sum(1)
    count = data.draw(st.integers(0, units))
    sink = data.draw(st.integers(0, count))
    local = data.draw(st.integers(0, count - sink))
    ids = whole_powers(groups, repeats, units, span, powers, halvings).choose(count, sink, local)
    assert ids.tolist() == topk_pages(exact, count, sink=sink, local=local).tolist()


@pytest.mark.parametrize("count", [1, 63, 64, 2047, 2048])
def test_the_best_of_many_apart_by_the_last_bit(count: int) -> None:
    torch.manual_seed(0)
    powers = (torch.randperm(2048) + 2**23).float().view(1, 1, -1)
    ids = whole_powers(1, 1, 2048, 2048, powers, torch.zeros(1, 1, 1)).choose(count, 0, 0)
    assert ids.tolist() == topk_pages(powers[0], count, sink=0, local=0).tolist()


def test_more_than_there_are() -> None:
    powers = whole_powers(1, 1, 3, 4, torch.ones(1, 1, 3), torch.zeros(1, 1, 1))
    assert powers.choose(5, 1, 1).tolist() == [[0, 1, 2, -1, -1]]
    assert powers.choose(2, 5, 5).tolist() == [[0, 1]]
    assert powers.choose(2, 1, 5).tolist() == [[0, 2]]
