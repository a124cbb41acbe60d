"""A store's links held to a speed: a fast machine then stands for one with a slower bus or disk.

A slow link carries one transfer at a time, and a transfer takes at least as long as its bytes would. Waiting is
sleeping, so that the processor is as free meanwhile as it would be beside a real transfer.

Transfers sent ahead return at once. They fall due in the order sent; a transfer that someone waits for delays them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...storage.transfer.links import Link, Links, Transfer


class SlowLink(Link):
    """A link of at most `gbps` 10^9 bytes per second. Raises ValueError unless that is more than 0."""

    is_held = True

    def __init__(self, gbps: float) -> None:
        if not gbps > 0:
            raise ValueError(f"a link's speed is more than 0 GB/s, not {gbps}")
        super().__init__()
        self._bytes_per_s = gbps * 1e9
        self._one_at_a_time = threading.Lock()
        self._free_at = 0.0
        """The moment (of `time.perf_counter`) at which the last transfer sent ahead is due."""
        self._put_off = 0.0
        """Total seconds by which awaited transfers have delayed the ones sent ahead."""

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        transfer = Transfer()
        with self._one_at_a_time:
            started = time.perf_counter()
            yield transfer
            taken = time.perf_counter() - started
            if transfer.num_bytes / self._bytes_per_s > taken:
                time.sleep(transfer.num_bytes / self._bytes_per_s - taken)
            if transfer.num_bytes:
                with self._sum:
                    taken = time.perf_counter() - started
                    self.busy_s += taken
                    if self._free_at > started:
                        self._free_at += taken
                        self._put_off += taken

    @contextmanager
    def sending(self) -> Iterator[Transfer]:
        transfer, started = Transfer(), time.perf_counter()
        yield transfer
        taken = max(time.perf_counter() - started, transfer.num_bytes / self._bytes_per_s)
        if transfer.num_bytes:
            with self._sum:
                self.busy_s += taken
                self._free_at = max(self._free_at, started) + taken

    @property
    def due(self) -> float:
        with self._sum:
            return self._free_at - self._put_off

    def wait(self, due: float) -> float:
        started = time.perf_counter()
        while (rest := due + self._put_off - time.perf_counter()) > 0:
            time.sleep(rest)
        return time.perf_counter() - started


def slow_down(links: Links, host_gbps: float | None, disk_gbps: float | None) -> None:
    """Hold `links` to so many 10^9 bytes per second from now on; None: as fast as they are. Raises ValueError unless
    both are more than 0."""
    if host_gbps is not None:
        links.host = SlowLink(host_gbps)
    if disk_gbps is not None:
        links.disk = SlowLink(disk_gbps)
