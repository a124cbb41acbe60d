"""Paired comparison: the same samples read densely and sparsely.

Contexts are independent of each other. One has no interval, and few decide nothing: neither that a mark is missed nor
that it is met.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

GATE = 0.30
"""The least score of the dense model: a task that it mostly fails says nothing about retrieval. It is shown, not
gated."""
FEWEST = 4
"""The fewest clusters for a bootstrap: with fewer, no mark is met or missed."""
_RARE = 3
"""The rule of three: an event in fewer than 3 / n of all cases may well not be among n of them."""
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Paired:
    """A comparison of dense with another reader. Scores are in [0, 1], differences are other minus dense."""

    n: int
    clusters: int
    """The number of independent clusters among the n items: contexts, where several items come from one."""
    dense: float
    other: float
    only_dense: int
    """The number of pairs in which dense scored higher."""
    only_other: int
    p_value: float
    """The p-value of an exact sign test over the clusters that differ; McNemar's where every item is its own
    cluster."""
    interval: tuple[float, float] | None
    """95 % interval of the mean difference: bootstrap over clusters, its lower end at least by the rule of three below
    the difference; where no pair differs, by that rule alone. None: there is one cluster only."""

    @property
    def difference(self) -> float:
        return self.other - self.dense

    @property
    def gates(self) -> bool:
        return self.dense >= GATE

    def loses_at_most(self, margin: float) -> bool | None:
        """True if the true difference is above `-margin`; None if these samples cannot tell. To show that nothing more
        is lost takes as many clusters as would show a loss, however little these have lost."""
        if self.interval is None or self.clusters < FEWEST:
            return None
        low, high = self.interval
        if low >= -margin:
            return True if self.clusters * margin >= _RARE else None
        return False if self.difference < -margin and (self.p_value < 0.05 or high < -margin) else None

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
    interval = bootstrap(change, clusters, seed=seed)
    if interval is not None:
        low, high = interval
        rare = min(1.0, _RARE / len(names))  # this many others may lose although none of these has
        interval = max(-1.0, min(low, float(change.mean()) - rare)), high if change.any() else rare
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
    """The two-sided exact p-value of so uneven a split, were both sides equally likely."""
    total = only_one + only_other
    tail = sum(math.comb(total, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / (1 << total))


def bootstrap(values: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of the mean of `values` `[n]`, resampling clusters: tokens of one
    context are not independent. One cluster alone would give no width: it has no interval."""
    names, member = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        return None
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(0, len(names), (_RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def keeps_within(excess: np.ndarray) -> bool | None:
    """True if a mark is met, given by how much each context `[n]` exceeds it: on average not at all. None if so few
    contexts cannot tell; NaN does not meet it."""
    if np.isnan(excess).any():
        return False
    interval = bootstrap(excess, np.arange(len(excess)))
    if interval is None or len(excess) < FEWEST:
        return None
    low, high = interval
    return True if high <= 0 else False if low > 0 else None


def judge(marks: dict[str, bool | None]) -> dict[str, list[str]]:
    """List the marks that are missed, and those that so few samples cannot decide."""
    return {
        "misses": [mark for mark, met in marks.items() if met is False],
        "undecided": [mark for mark, met in marks.items() if met is None],
    }
