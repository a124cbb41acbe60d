"""A check of the exact suite: an error and the bound it must not exceed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    error: float | None
    """The error; None: the check raised."""
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.bound  # False for NaN

    def as_dict(self) -> dict[str, Any]:
        error = None if self.error is None or math.isnan(self.error) else self.error
        return {**asdict(self), "error": error, "passed": self.passed}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected magnitude. Both tensors have the same shape."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
