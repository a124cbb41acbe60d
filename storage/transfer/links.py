"""Edges between tiers: how long they were busy, and a speed that each can be held to.

Held to a speed, an edge carries one transfer at a time and a transfer takes at least as long as its bytes
would: a fast machine then stands for one with a slower bus or disk. Waiting is sleeping, so that the
processor is as free meanwhile as it would be beside a real transfer.

Transfers sent ahead return at once. They fall due in the order sent; a transfer that someone waits for delays them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass


@dataclass(slots=True)
class Transfer:
    """One transfer. Set `num_bytes` before the end of the `with` block."""

    num_bytes: int = 0


class Link:
    """One edge between two tiers, for transfers in one direction."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.busy_s = 0.0
        """Seconds that all transfers took together."""
        self._one_at_a_time = threading.Lock()
        self._sum = threading.Lock()
        self._free_at = 0.0
        """The moment (of `time.perf_counter`) at which the last transfer sent ahead is due."""
        self._put_off = 0.0
        """Total seconds by which awaited transfers have delayed the ones sent ahead."""

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        """Everything moved inside the block is one transfer, and its caller waits for it. Hold no lock around the block
        that others wait for."""
        transfer, speed = Transfer(), self.bytes_per_s
        with self._one_at_a_time if speed else nullcontext():
            started = time.perf_counter()
            yield transfer
            taken = time.perf_counter() - started
            if speed and transfer.num_bytes / speed > taken:
                time.sleep(transfer.num_bytes / speed - taken)
            if transfer.num_bytes:
                with self._sum:
                    taken = time.perf_counter() - started
                    self.busy_s += taken
                    if self._free_at > started:
                        self._free_at += taken
                        self._put_off += taken

    @contextmanager
    def sending(self) -> Iterator[Transfer]:
        """Like `moving`, for a transfer sent ahead: returns as soon as the bytes are copied, however slow the edge is
        held to be."""
        transfer, started = Transfer(), time.perf_counter()
        yield transfer
        taken = time.perf_counter() - started
        if self.bytes_per_s:
            taken = max(taken, transfer.num_bytes / self.bytes_per_s)
        if transfer.num_bytes:
            with self._sum:
                self.busy_s += taken
                self._free_at = max(self._free_at, started) + taken

    @property
    def due(self) -> float:
        """The time at which all that was sent ahead so far is due. Pass it to `wait`, which adds delays that come
        later."""
        with self._sum:
            return self._free_at - self._put_off

    def wait(self, due: float) -> float:
        """Wait until everything that was sent ahead when `due` was read has arrived. Returns the seconds waited."""
        started = time.perf_counter()
        while self.bytes_per_s and (rest := due + self._put_off - time.perf_counter()) > 0:
            time.sleep(rest)
        return time.perf_counter() - started


class Links:
    """The edges of a store that lead to faster tiers."""

    def __init__(self) -> None:
        self.disk, self.host = Link(), Link()
        """The edges from disk to host, and from host to gpu."""

    def hold_to(self, host_gbps: float | None, disk_gbps: float | None) -> None:
        """Hold each edge to a speed in 10^9 bytes per second; None: as fast as it is. Raises ValueError unless more
        than 0."""
        for link, speed in ((self.host, host_gbps), (self.disk, disk_gbps)):
            if speed is not None and not speed > 0:
                raise ValueError(f"a link's speed is more than 0 GB/s, not {speed}")
            link.bytes_per_s = None if speed is None else speed * 1e9

    @property
    def busy_s(self) -> float:
        return self.disk.busy_s + self.host.busy_s
