"""Code points of a layer's keys and values, learned once from pages (KVQuant, arXiv 2401.18079).

Numbers from -1 to 1, as the codec scales them, are put to the nearest of a few points; the points are a k-means of
them, where an error weighs as much as it is long in the page, squared, and for keys as the queries that meet it.
"""

from __future__ import annotations

import numpy as np

from .kvquant import BITS, PROFILE, scaled

_ROUNDS = 30


def learn_points(pages: np.ndarray, sensitivity: np.ndarray) -> dict[str, np.ndarray]:
    """Learn a layer's code points, for each number of bits fp16 `[S, 2**bits]`, ascending.

    Args:
        pages: fp32 `[n, S, G, L, D]`. sensitivity: of a key's channel, mean square of the queries' `[G, D]`.
    """
    found: dict[str, list[np.ndarray]] = {f"{PROFILE}{bits}": [] for bits in BITS}
    for side in range(pages.shape[1]):
        each = scaled(side, pages[:, side])
        weights = np.broadcast_to(np.square(each.half, dtype=np.float64), each.even.shape)
        weights = (weights * sensitivity[:, None] if side == 0 else weights).copy()
        np.put_along_axis(weights.reshape(*each.places.shape[:2], -1), each.places, 0, -1)
        for bits in BITS:
            found[f"{PROFILE}{bits}"].append(_points(each.even.reshape(-1), weights.reshape(-1), 2**bits))
    return {name: np.stack(points).astype(np.float16) for name, points in found.items()}


def _points(numbers: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Weighted k-means of numbers `[n]`, from even quantiles: ascending, `[count]`."""
    order = numbers.argsort()
    numbers, weights = numbers[order], weights[order]
    mass, moment = (np.append(0, np.cumsum(of)) for of in (weights, weights * numbers))
    points = numbers[np.searchsorted(mass[1:], mass[-1] * (np.arange(count) + 0.5) / count).clip(max=len(numbers) - 1)]
    for _ in range(_ROUNDS):
        ends = np.array([0, *np.searchsorted(numbers, (points[1:] + points[:-1]) / 2), len(numbers)])
        shares, sums = np.diff(mass[ends]), np.diff(moment[ends])
        points = np.where(shares > 0, sums / np.where(shares > 0, shares, 1), points)
    return np.sort(points)
