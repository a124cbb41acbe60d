"""What the store counted. Plain numbers, added up where the thing happens."""

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
    """Time callers waited for pages to come up, or for room in the host tier. What comes ahead of need waits alone."""
    row_hits: int = 0
    """Units of one KV head that decode found in a row cache of the device pool; of `row_hits + row_misses`."""
    row_misses: int = 0
    prefetched_bytes: int = 0
    """Moved before anybody asked, over either edge."""
    useful_prefetched_bytes: int = 0
    """Of those, read later."""
    wasted_prefetched_bytes: int = 0
    """Of those, dropped without having been read."""
    prefetches: int = 0
    """Guesses of what a layer will read."""
    prefetches_cancelled: int = 0
    """Of those, whose pages from disk were overtaken by the step they were meant for."""

    def add(self, **amounts: float) -> None:
        """For any thread, whatever it has locked: the only way for what no lock of the store guards."""
        with _adding:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def since(self, before: Counters) -> Counters:
        """What was counted after `before`, an earlier copy."""
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
        """What was counted, without the shares of it: those of a while are `since`'s."""
        return asdict(self)
