"""A record of what one decode step of one layer did, for whoever watches: evaluation, tests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Step(NamedTuple):
    """One decode step of one layer, as `TieredLayer.watch` is told of it."""

    query: Tensor
    """`[G, R, D]`, rotated."""
    scale: float
    ids: np.ndarray | None
    """Units read `[G, n]`; None if nothing was sealed yet."""
    unit: int
    """Tokens per unit."""
    out: Tensor
    """`[G, R, D]`."""
    lse: Tensor
    """fp32 `[G, R]`: log-sum-exp of the scores over everything read."""
