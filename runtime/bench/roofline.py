"""What a step would take if bytes were all that costs time, and every edge moved them as fast as it can.

A step reads the weights and the KV it attends to from the device's memory; what is not there crosses an edge, while
other bytes move. So the roofline is the slowest of the three, and a step's share of it is 1 when nothing else costs
time. What an index reads to choose is not counted: the share is a lower bound. Where a step is faster than that, its
bytes came out of caches, and there is no share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..api.figures import ratio
from .bandwidths import Bandwidths


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes of one mean step."""

    weights: float
    kv: float
    """Keys and values attended to, all layers and sequences."""
    link: float = 0.0
    """Host memory to device."""
    disk: float = 0.0

    def against(self, bandwidths: Bandwidths, step_s: float) -> dict[str, Any]:
        """The roofline, its parts, and the share of it that a step of `step_s` reaches: at most 1, or None."""
        parts = {
            "memory_s": (self.weights + self.kv) / bandwidths.memory,
            "link_s": self.link / bandwidths.link,
            "disk_s": self.disk / bandwidths.disk,
        }
        bound = max(parts.values())
        return {
            "weights_bytes": self.weights, "kv_bytes": self.kv, **parts, "bound_s": bound,
            "share": ratio(bound, step_s) if bound <= step_s else None,
        }  # fmt: skip
