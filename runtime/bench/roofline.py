"""The time that a step would take if only moving bytes cost time, and every edge moved them as fast as it can.

A step reads the weights and the KV it attends to from the device's memory; what is not there crosses an edge, while
other bytes move. So the roofline is the slowest of the three, and a step's share of it is 1 when nothing else costs
time. Where a step is faster than that, its bytes came out of caches, and there is no share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..api.figures import ratio
from .bandwidths import Bandwidths


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes that one mean step reads or moves."""

    weights: float
    kv: float
    """Bytes of keys and values attended to, of all layers and sequences."""
    index: float = 0.0
    """Bytes that indexes read to choose those."""
    link: float = 0.0
    """Bytes moved from host memory to the device."""
    disk: float = 0.0

    def against(self, bandwidths: Bandwidths, step_s: float) -> dict[str, Any]:
        """The roofline, its parts, and the share of it that a step of `step_s` reaches: at most 1, or None."""
        parts = {
            "memory_s": (self.weights + self.kv + self.index) / bandwidths.memory,
            "link_s": self.link / bandwidths.link,
            "disk_s": self.disk / bandwidths.disk,
        }
        bound = max(parts.values())
        return {
            "weights_bytes": self.weights, "kv_bytes": self.kv, "index_bytes": self.index, **parts, "bound_s": bound,
            "share": ratio(bound, step_s) if bound <= step_s else None,
        }  # fmt: skip
