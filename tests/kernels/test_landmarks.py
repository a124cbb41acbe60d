"""Landmarks: mean keys of chunks, and which chunks a mean stands for badly."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close

from stratakv.kernels.landmarks import landmarks


def test_by_hand() -> None:
    """Alike; alike but for their length; at right angles; opposite: the mean is (0, 0.5), far from (4, 0)."""
    keys = [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]], [[2.0, 0.0], [0.0, 2.0]], [[4.0, 0.0], [-4.0, 1.0]]]
    means, cosines = landmarks(torch.tensor(keys).view(1, 8, 2), 2)
    assert means.tolist() == [[[1.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, 0.5]]]
    assert cosines.tolist() == [pytest.approx([1.0, 1.0, 0.5**0.5, 0.0], abs=1e-6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("count", "chunk", "dim"), [(0, 8, 64), (1, 1, 64), (5, 3, 64), (33, 8, 128), (7, 4, 256)])
def test_against_the_formula(count: int, chunk: int, dim: int, dtype: torch.dtype) -> None:
    keys = torch.randn(2, count * chunk, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    means, cosines = landmarks(keys, chunk)
    assert means.dtype == cosines.dtype == torch.float32
    each = keys.double().view(2, count, chunk, dim)
    mean = each.mean(2)
    assert_close("means", means, mean)
    assert_close("cosines", cosines, torch.cosine_similarity(each, mean.unsqueeze(2), dim=-1).amin(2))


def test_a_mean_of_zero_is_an_outlier_and_no_nan() -> None:
    means, cosines = landmarks(torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]), 2)
    assert means.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert cosines.tolist() == [[0.0, 0.0]]


def test_keys_that_are_not_whole_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="17 keys are not whole chunks of 8"):
        landmarks(torch.zeros(1, 17, 64), 8)
