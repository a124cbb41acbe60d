"""Paired comparison: the same samples read densely and sparsely."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

GATE = 0.30
"""A task the dense model itself mostly fails says nothing about retrieval: shown, not gated."""
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Paired:
    """Dense against another reader. Scores are in [0, 1], differences other minus dense."""

    n: int
    dense: float
    other: float
    only_dense: int
    """Pairs in which dense scored higher."""
    only_other: int
    p_value: float
    """Exact McNemar (two-sided sign test over the discordant pairs)."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the mean difference, resampling whole clusters."""

    @property
    def difference(self) -> float:
        return self.other - self.dense

    @property
    def gates(self) -> bool:
        return self.dense >= GATE

    @property
    def is_worse(self) -> bool:
        """More than 5 points below dense, and not by chance."""
        return self.difference < -0.05 and self.p_value < 0.05

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference, "gates": self.gates, "is_worse": self.is_worse}


def paired(dense: np.ndarray, other: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> Paired:
    """Compare scores `[n]` of the same items; `clusters` `[n]` names the context each belongs to.

    Raises ValueError if there is nothing to compare or the lengths differ.
    """
    if not len(dense) == len(other) == len(clusters) or not len(dense):
        raise ValueError(f"expected as many scores of both, at least one; got {len(dense)} and {len(other)}")
    only_dense, only_other = int((dense > other).sum()), int((other > dense).sum())
    return Paired(
        n=len(dense),
        dense=float(dense.mean()),
        other=float(other.mean()),
        only_dense=only_dense,
        only_other=only_other,
        p_value=mcnemar(only_dense, only_other),
        interval=bootstrap(other - dense, clusters, seed=seed),
    )


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided exact p-value of so uneven a split of the discordant pairs, were both sides equal."""
    total = only_one + only_other
    tail = sum(math.comb(total, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / (1 << total))


def bootstrap(values: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` `[n]`, resampling clusters: tokens of one
    context are not independent."""
    names, member = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
