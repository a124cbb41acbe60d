"""Paired comparison: the same samples read densely and sparsely."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

GATE = 0.30
"""A task the dense model itself mostly fails says nothing about retrieval: shown, not gated."""
FEWEST = 4
"""A bootstrap over fewer clusters says nothing."""
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Paired:
    """Dense against another reader. Scores are in [0, 1], differences other minus dense."""

    n: int
    clusters: int
    """Independent ones among the n: contexts, where several items come from one."""
    dense: float
    other: float
    only_dense: int
    """Pairs in which dense scored higher."""
    only_other: int
    p_value: float
    """Exact sign test over the clusters that differ; McNemar's where every item is its own cluster."""
    interval: tuple[float, float]
    """95 % of the mean difference: bootstrap over clusters; where no pair differs, by the rule of three."""

    @property
    def difference(self) -> float:
        return self.other - self.dense

    @property
    def gates(self) -> bool:
        return self.dense >= GATE

    def loses_at_most(self, margin: float) -> bool | None:
        """Whether the true difference is above `-margin`; None if these samples cannot tell."""
        if self.interval[0] >= -margin:
            return True
        is_clear = self.p_value < 0.05 or (self.clusters >= FEWEST and self.interval[1] < -margin)
        return False if self.difference < -margin and is_clear else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference, "gates": self.gates}


def paired(dense: np.ndarray, other: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> Paired:
    """Compare scores `[n]` of the same items; `clusters` `[n]` names the context each belongs to.

    Raises ValueError if there is nothing to compare or the lengths differ.
    """
    if not len(dense) == len(other) == len(clusters) or not len(dense):
        raise ValueError(f"expected as many scores of both, at least one; got {len(dense)} and {len(other)}")
    change = other - dense
    names, member = np.unique(clusters, return_inverse=True)
    by_cluster = np.bincount(member, change)
    if change.any():
        interval = bootstrap(change, clusters, seed=seed)
    else:
        interval = (-min(1.0, 3 / len(names)), min(1.0, 3 / len(names)))
    return Paired(
        n=len(dense),
        clusters=len(names),
        dense=float(dense.mean()),
        other=float(other.mean()),
        only_dense=int((change < 0).sum()),
        only_other=int((change > 0).sum()),
        p_value=sign_test(int((by_cluster < -1e-9).sum()), int((by_cluster > 1e-9).sum())),
        interval=interval,
    )


def sign_test(only_one: int, only_other: int) -> float:
    """Two-sided exact p-value of so uneven a split, were both sides equally likely."""
    total = only_one + only_other
    tail = sum(math.comb(total, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / (1 << total))


def bootstrap(values: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` `[n]`, resampling clusters: tokens of one
    context are not independent. One cluster alone gives no width."""
    names, member = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def judge(marks: dict[str, bool | None]) -> dict[str, list[str]]:
    """Marks that are missed, and those that so few samples cannot decide."""
    return {
        "misses": [mark for mark, met in marks.items() if met is False],
        "undecided": [mark for mark, met in marks.items() if met is None],
    }
