"""Compiled k-means against a plain one, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.kernels.compiled.centroids import CENTROIDS, WIDTH, learned


def plain(x: Tensor, begins: Tensor, iterations: int) -> Tensor:
    """Of one part, fp64."""
    x = x.double()
    found = x[begins]
    for _ in range(iterations):
        nearest = (x @ found.T - 0.5 * found.square().sum(1)).argmax(1)
        for c in nearest.unique():
            found[c] = x[nearest == c].mean(0)
    return found


@pytest.mark.parametrize(("groups", "count", "parts", "iterations"), [(1, 257, 1, 0), (2, 400, 3, 1), (3, 1024, 6, 4)])
def test_centroids_are_the_means_of_what_is_nearest(groups: int, count: int, parts: int, iterations: int) -> None:
    """All but a few: where two are as near to a vector as rounding tells apart, either may have it."""
    random = torch.Generator().manual_seed(count)
    x = torch.randn(groups, count, parts * WIDTH, generator=random)
    begins = torch.randperm(count, generator=random)[:CENTROIDS]
    found = torch.from_numpy(learned(x.numpy(), parts, begins.numpy(), iterations, threads=2))
    assert found.shape == (groups, parts, CENTROIDS, WIDTH)
    split = x.view(groups, count, parts, WIDTH)
    for g in range(groups):
        for m in range(parts):
            expected = plain(split[g, :, m], begins, iterations)
            off = (found[g, m] - expected).abs().amax(1)
            assert (off > 1e-4).float().mean() <= 0.05, "two that are as near may each have a vector"
            if not iterations:
                assert torch.equal(found[g, m], split[g, begins, m])


def test_a_centroid_that_nobody_is_near_stays_where_it_is() -> None:
    x = torch.zeros(1, 300, WIDTH)
    x[:, 0] = 5.0
    found = torch.from_numpy(learned(x.numpy(), 1, torch.arange(CENTROIDS).numpy(), 3))[0, 0]
    assert torch.equal(found[0], torch.full((WIDTH,), 5.0))
    assert torch.equal(found[1:], torch.zeros(CENTROIDS - 1, WIDTH))
