"""The types of `Runtime.stats`: plain numbers, as JSON has them. docs/FIGURES.md defines each."""

from __future__ import annotations

from typing import TypedDict


class TierStats(TypedDict):
    """One tier: its cap, what lies in it, and how many page reads it served."""

    cap_bytes: int
    used_bytes: int
    pages: int
    page_reads: int


class Stats(TypedDict):
    """A runtime's model and settings, and what its store has counted since the model was loaded."""

    model: str
    device: str
    dtype: str
    weights: str
    kv_dtype: str
    index: str
    budget: int | float
    tokens_read: int
    """Tokens that the last decode step read, per KV head and layer."""
    tiers: dict[str, TierStats]
    """The tiers there are, by name: `gpu`, `host`, `disk`."""
    hit_rate: float | None
    edges: dict[str, int]
    """Bytes that moved, by direction: `host_to_gpu_bytes` and the three others."""
    pages_written: int
    pages_shared: int
    pages_recomputed: int
    states: int
    """What texts have left on disk besides pages, for other conversations that begin alike."""
    state_every: int
    """Tokens between the places in a text where layers without pages leave their state; 0 where there are none."""
    stall_s: float
    codec: str
    int4_share: float
    disk_error: str | None
