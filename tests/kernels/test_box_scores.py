"""Both bounds of a box: no key inside scores higher or lower, and they never cross."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import HEAD_SHAPES, TOLERANCE, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kernels.box_scores import box_scores, box_scores_reference
from stratakv.kernels.page_bounds import bound_scores, page_bounds

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("scores_of", [box_scores, box_scores_reference])
def test_scores_by_hand(scores_of: Any) -> None:
    """Keys (1, -2) and (3, -4): their box has the corners (3, -2), (1, -4), (3, -4) and (1, -2)."""
    boxes = page_bounds(torch.tensor([[[1.0, -2.0], [3.0, -4.0]]]), 2)
    q = torch.tensor([[[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 0.0]]])
    hi, lo = scores_of(q, boxes)
    assert hi.tolist() == [[[1.0], [3.0], [7.0], [0.0]]]
    assert lo.tolist() == [[[-3.0], [-1.0], [3.0], [0.0]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("repeats", "dim"), HEAD_SHAPES)
@pytest.mark.parametrize("count", [0, 1, 63])
def test_against_the_reference(count: int, repeats: int, dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    boxes = page_bounds(torch.randn(3, count * 4, dim, generator=generator).to(dtype), 4)
    q = torch.randn(3, repeats, dim, generator=generator).to(dtype)
    for found, expected in zip(box_scores(q, boxes), box_scores_reference(q, boxes), strict=True):
        assert found.dtype == torch.float32
        assert_close("scores", found, expected)
    assert_close("hi", box_scores(q, boxes)[0], bound_scores(q, boxes))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 3, 16]),
    dim=st.sampled_from([1, 8, 64]),
    shift=st.sampled_from([0.0, -3.0, 50.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_no_key_lies_outside(seed: int, size: int, dim: int, shift: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = (torch.randn(2, 5 * size, dim, generator=generator) + shift).to(dtype)
    q = torch.randn(2, 4, dim, generator=generator)
    exact = (q.double() @ keys.double().transpose(1, 2)).view(2, 4, 5, size)
    rounding = TOLERANCE[torch.float32] * (q.abs().double() @ keys.abs().double().transpose(1, 2)).max()
    hi, lo = box_scores(q, page_bounds(keys, size))
    assert (hi.double() + rounding >= exact.amax(-1)).all()
    assert (lo.double() - rounding <= exact.amin(-1)).all()
    assert (hi >= lo).all(), "where all keys of a box are equal, rounding would let them cross"
