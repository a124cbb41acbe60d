"""Edges between tiers: how long they were busy, and a speed that each can be held to.

Held to a speed, an edge carries one transfer at a time and a transfer takes at least as long as its bytes
would: a fast machine then stands for one with a slower bus or disk. Waiting is sleeping, so that the
processor is as free meanwhile as it would be beside a real transfer.

What is sent ahead is not waited for. It is on its way until it is due, in the order in which it was sent, and is put
off by what somebody waits for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass


@dataclass(slots=True)
class Transfer:
    """Set `num_bytes` before the end of the `with` block."""

    num_bytes: int = 0


class Link:
    """One edge, for transfers in one direction."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.busy_s = 0.0
        """Time of all transfers together."""
        self._one_at_a_time = threading.Lock()
        self._sum = threading.Lock()
        self._free_at = 0.0
        """When the last of what was sent ahead is due."""
        self._put_off = 0.0
        """By how long in all such transfers were."""

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        """What moves inside the block is one transfer. Nothing that others wait for may be locked around it."""
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
        """The same for what is sent ahead: returns as soon as it is copied, however slow the edge is held to be."""
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
        """Of all that was sent ahead so far, for `wait`."""
        with self._sum:
            return self._free_at - self._put_off

    def wait(self, due: float) -> float:
        """Until what was `due` then is there; returns for how many seconds."""
        started = time.perf_counter()
        while self.bytes_per_s and (rest := due + self._put_off - time.perf_counter()) > 0:
            time.sleep(rest)
        return time.perf_counter() - started


class Links:
    """A store's edges to faster tiers."""

    def __init__(self) -> None:
        self.disk, self.host = Link(), Link()
        """From disk to host, and from host to gpu."""

    def hold_to(self, host_gbps: float | None, disk_gbps: float | None) -> None:
        """At most so many 10^9 bytes per second; None: as fast as they are. Raises ValueError unless more than 0."""
        for link, speed in ((self.host, host_gbps), (self.disk, disk_gbps)):
            if speed is not None and not speed > 0:
                raise ValueError(f"a link's speed is more than 0 GB/s, not {speed}")
            link.bytes_per_s = None if speed is None else speed * 1e9

    @property
    def busy_s(self) -> float:
        return self.disk.busy_s + self.host.busy_s
