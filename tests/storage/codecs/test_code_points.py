"""Code points are the weighted means of what lies nearest to each."""

from __future__ import annotations

import numpy as np

from stratakv.storage.codecs.code_points import learn_points
from stratakv.storage.codecs.kvquant import scaled


def test_each_point_is_the_mean_of_its_numbers() -> None:
    """Of values, where an error weighs as the square of its token's extent; pages of keys alone give one row."""
    pages = np.random.default_rng(0).standard_normal((30, 2, 2, 16, 32)).astype(np.float32)
    pages[:, 1, :, ::2] = 10 * np.sign(pages[:, 1, :, ::2])  # long tokens, whose numbers lie at the ends
    points = learn_points(pages, np.ones((2, 32), np.float32))["kvquant.2"][1].astype(np.float64)
    each = scaled(1, pages[:, 1])
    weights = np.broadcast_to(np.square(each.half.astype(np.float64)), each.even.shape).copy()
    np.put_along_axis(weights.reshape(30, 2, -1), each.places, 0, -1)
    nearest = np.abs(each.even[..., None] - points).argmin(-1)
    means = [np.average(each.even[nearest == at], weights=weights[nearest == at]) for at in range(4)]
    np.testing.assert_allclose(points, means, atol=0.01)
    assert learn_points(pages[:, :1], np.ones((2, 32), np.float32))["kvquant.3"].shape == (1, 8)
