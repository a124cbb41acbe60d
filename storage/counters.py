"""Counters of the store: plain numbers, added up where the counted thing happens."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass

_adding = threading.Lock()


@dataclass(slots=True)
class Counters:
    """Page reads by the tier that served them, bytes moved per tier edge, and time spent waiting."""

    gpu_reads: int = 0
    host_reads: int = 0
    disk_reads: int = 0
    host_to_gpu_bytes: int = 0
    gpu_to_host_bytes: int = 0
    disk_to_host_bytes: int = 0
    host_to_disk_bytes: int = 0
    pages_written: int = 0
    pages_shared: int = 0
    pages_recomputed: int = 0
    stall_s: float = 0.0
    """Seconds that callers waited for pages to come up, or for room in the host tier. Nobody waits for a prefetch."""
    row_hits: int = 0
    """Units of one KV head that a decode step found in a row cache of the device pool, of `row_hits + row_misses` in
    all."""
    row_misses: int = 0
    prefetched_bytes: int = 0
    """Bytes moved before anybody asked for them, over either edge."""
    useful_prefetched_bytes: int = 0
    """Prefetched bytes that were read later."""
    wasted_prefetched_bytes: int = 0
    """Prefetched bytes that were dropped without having been read."""
    prefetches: int = 0
    """Prefetches begun: each follows one guess of what a layer will read."""
    prefetches_cancelled: int = 0
    """Prefetches cancelled because the step they were meant for came first."""

    def add(self, **amounts: float) -> None:
        """Thread-safe, with or without the store's lock. Use it for counters that lock does not guard."""
        with _adding:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def since(self, before: Counters) -> Counters:
        """The counts that were added after `before`, an earlier copy."""
        earlier = asdict(before)
        return Counters(**{name: count - earlier[name] for name, count in asdict(self).items()})

    @property
    def reads(self) -> int:
        return self.gpu_reads + self.host_reads + self.disk_reads

    @property
    def hit_rate(self) -> float | None:
        """Share of page reads that needed no disk; None where nothing was read."""
        return 1.0 - self.disk_reads / self.reads if self.reads else None

    @property
    def device_hit_rate(self) -> float | None:
        """Share of page reads that the device pool served; None where nothing was read."""
        return self.gpu_reads / self.reads if self.reads else None

    @property
    def row_hit_rate(self) -> float | None:
        """Share of the units looked for in a row cache that were there; None where none was looked for."""
        units = self.row_hits + self.row_misses
        return self.row_hits / units if units else None

    def as_dict(self) -> dict[str, int | float]:
        """All counts by name, without the rates: rates of a period are properties of what `since` returns."""
        return asdict(self)
