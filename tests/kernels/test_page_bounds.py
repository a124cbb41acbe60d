"""Page bounds: extremes of each page, and a score that no key of the page can exceed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import HEAD_SHAPES, TOLERANCE, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kernels.page_bounds import bound_scores, bound_scores_reference, page_bounds

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("num_pages", "page_size"), [(0, 16), (1, 1), (3, 5), (7, 16)])
def test_extremes_of_each_page(num_pages: int, page_size: int, dim: int, dtype: torch.dtype) -> None:
    keys = torch.randn(2, num_pages * page_size, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    bounds = page_bounds(keys, page_size)
    assert bounds.dtype == dtype
    assert bounds.shape == (2, num_pages, 2 * dim)
    for page in range(num_pages):
        run = keys[:, page * page_size : (page + 1) * page_size]
        for g in range(2):
            for d in range(0, dim, 17):
                assert bounds[g, page, d] == max(run[g, :, d].tolist())
                assert bounds[g, page, dim + d] == min(run[g, :, d].tolist())


def test_keys_that_are_not_whole_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="17 keys are not whole pages of 16"):
        page_bounds(torch.zeros(1, 17, 64), 16)


@pytest.mark.parametrize("scores_of", [bound_scores, bound_scores_reference])
def test_scores_by_hand(scores_of: Any) -> None:
    """Two keys (1, -2) and (3, -4): the corner (3, -2) suits (1, 1), the corner (1, -4) suits (-1, -1)."""
    bounds = page_bounds(torch.tensor([[[1.0, -2.0], [3.0, -4.0]]]), 2)
    q = torch.tensor([[[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [0.0, 0.0]]])
    assert scores_of(q, bounds).tolist() == [[[1.0], [3.0], [7.0], [0.0]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("repeats", "dim"), HEAD_SHAPES)
@pytest.mark.parametrize("num_pages", [0, 1, 63])
def test_against_the_reference(num_pages: int, repeats: int, dim: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_pages)
    bounds = page_bounds(torch.randn(3, num_pages * 4, dim, generator=generator).to(dtype), 4)
    q = torch.randn(3, repeats, dim, generator=generator).to(dtype)
    scores = bound_scores(q, bounds)
    assert scores.dtype == torch.float32
    assert_close("scores", scores, bound_scores_reference(q, bounds))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    page_size=st.sampled_from([1, 3, 16]),
    dim=st.sampled_from([1, 8, 64]),
    shift=st.sampled_from([0.0, -3.0, 50.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_no_key_exceeds_its_page(seed: int, page_size: int, dim: int, shift: float, dtype: torch.dtype) -> None:
    """With keys of one sign, too: there the largest score may come from the minima alone."""
    generator = torch.Generator().manual_seed(seed)
    keys = (torch.randn(2, 5 * page_size, dim, generator=generator) + shift).to(dtype)
    q = torch.randn(2, 4, dim, generator=generator)
    exact = (q.double() @ keys.double().transpose(1, 2)).view(2, 4, 5, page_size)
    rounding = TOLERANCE[torch.float32] * (q.abs().double() @ keys.abs().double().transpose(1, 2)).max()
    assert (bound_scores(q, page_bounds(keys, page_size)).double() + rounding >= exact.amax(-1)).all()


def test_a_page_of_equal_keys_scores_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 6, 64, generator=generator)
    q = torch.randn(2, 3, 64, generator=generator)
    bounds = page_bounds(keys.repeat_interleave(16, 1), 16)
    assert_close("scores", bound_scores(q, bounds), q @ keys.transpose(1, 2))
