"""Two-phase loads: pages come up from disk while nobody holds the store's lock.

    begin(pids) --> Ticket --> finish(ticket) --> pages leased --> end(ticket)

     phase     what the ticket holds
     begin     a reference to every page; leases on those in memory; FILLING slots for those that are not,
               as far as the host has room beside them
     finish    reads what is missing, in turns: under the lock it claims pages that nobody else is reading
               and marks them as coming; without the lock it reads and verifies them straight into its slots;
               under the lock it settles and leases them
     end       leases, references and unused slots go back; also without `finish`

Invariants  (1) a page that a ticket refers to keeps its id (a reference) and, once in memory, its slot (a lease)
            (2) at most one thread reads a page at a time: who finds a page coming waits until it has come
            (3) no thread waits while it holds a page that is coming, so nobody waits in a circle. Open tickets
                block nobody: a page that is reserved but not being read may be read by whoever finishes first
            (4) a slot is settled only if its page is still nowhere in host memory; otherwise it goes back
            (5) what fails verification is never settled: its slot goes back and the page is named
Threads     any thread may begin, finish and end. Reads themselves are serialised: codecs and the clocks of
            `compression` belong to one reading thread at a time.
Room        pages beyond the host's room (`Ticket.beyond`) are read in rounds through one staging buffer of fixed
            size, made when it is first needed, and are never in a slot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from ..codecs.compression import Compression
from ..disk.disk_tier import DiskTier
from ..errors import ClosedError, CorruptPageError
from ..memory.arena import FILLING, Arena
from ..memory.residency import Residency
from . import clock
from .links import Links

_STAGING_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class Ticket:
    """A request for pages to come up. It is one thread's at a time, from `begin` to `end`."""

    pids: np.ndarray
    """Ids of all pages asked for."""
    missing: np.ndarray
    """Ids of the pages that were in no memory tier and got a slot, in the order of `slots`."""
    slots: np.ndarray
    """The slots (FILLING) that are not settled yet, one per missing page."""
    beyond: np.ndarray
    """Ids of the pages that the host has no room for."""
    leases: list[tuple[Arena, np.ndarray]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    """The reason why a page cannot be used, by page id."""
    is_ahead: bool = False
    """True if nobody has asked for the pages yet."""


class Loader:
    """Begins, reads and ends tickets."""

    def __init__(
        self, residency: Residency, disk: DiskTier | None, compression: Callable[[], Compression], links: Links
    ) -> None:
        self._residency, self._disk, self._compression, self._links = residency, disk, compression, links
        self._table, self._lock, self._host = residency.table, residency.lock, residency.host
        self._open: set[Ticket] = set()
        self._coming: set[int] = set()
        self._reader = threading.Lock()
        self._closed = False
        self._staging: torch.Tensor | None = None

    def is_coming(self, pid: int) -> bool:
        """True while some thread is reading the page."""
        return pid in self._coming

    def begin(self, pids: np.ndarray) -> Ticket:
        """Begin a ticket for distinct `pids`. The caller holds the lock."""
        table, gpu = self._table, self._residency.gpu
        self._residency.touch(pids)
        on_gpu = table.gpu_slot[pids] >= 0
        on_host = ~on_gpu & (table.host_slot[pids] >= 0)
        missing = pids[~on_gpu & ~on_host]
        ticket = Ticket(pids.copy(), missing, np.empty(0, dtype=np.int64), missing[:0])
        table.refs[pids] += 1
        if gpu is not None:
            self._lease(ticket, gpu, table.gpu_slot[pids[on_gpu]])
        self._lease(ticket, self._host, table.host_slot[pids[on_host]])
        if len(missing):
            assert self._disk is not None, "a page is in no tier"
            slots = self._residency.take_or_evict(self._host, len(missing), int(table.layer[missing[0]]))
            ticket.slots = np.sort(slots)  # neighbours can be copied in one
            ticket.missing, ticket.beyond = np.split(missing, [len(ticket.slots)])
        self._open.add(ticket)
        return ticket

    def count_reads(self, ticket: Ticket) -> None:
        """Somebody asked for the pages: count them by the tier in which they were found."""
        counters = self._residency.counters
        from_disk = len(ticket.missing) + len(ticket.beyond)
        from_gpu = sum(len(slots) for arena, slots in ticket.leases if arena is self._residency.gpu)
        counters.disk_reads += from_disk
        counters.gpu_reads += from_gpu
        counters.host_reads += len(ticket.pids) - from_disk - from_gpu

    def finish(self, ticket: Ticket) -> None:
        """Read what is missing. All pages but `beyond` and `failures` are then leased in memory."""
        if not len(ticket.slots):
            return
        started = clock.now()
        self._bring(ticket)
        if not ticket.is_ahead:
            self._residency.counters.add(stall_s=clock.now() - started)

    def _bring(self, ticket: Ticket) -> None:
        while len(ticket.slots):
            with self._lock:
                mine = self._claim(ticket)
                if not len(mine):
                    if len(ticket.slots):
                        self._lock.wait()
                    continue
            host = self._host.data.numpy()
            buffers = [host[slot] for slot in ticket.slots[mine].tolist()]
            wrong: dict[int, str] | None = None
            try:
                with self._reader:
                    wrong = self._read(ticket.missing[mine], buffers)
            finally:
                with self._lock:
                    self._come(ticket, mine, wrong)
            ticket.failures.update(wrong)

    def _claim(self, ticket: Ticket) -> np.ndarray:
        """Choose the slots of the ticket that this thread fills now, by index. Pages that have come by another way are
        leased instead."""
        here = self._table.host_slot[ticket.missing] >= 0
        if here.any():
            self._lease(ticket, self._host, self._table.host_slot[ticket.missing[here]])
            self._host.free(ticket.slots[here])
            ticket.missing, ticket.slots = ticket.missing[~here], ticket.slots[~here]
        mine = np.array([i for i, pid in enumerate(ticket.missing.tolist()) if pid not in self._coming], dtype=np.int64)
        self._coming.update(ticket.missing[mine].tolist())
        return mine

    def _come(self, ticket: Ticket, mine: np.ndarray, wrong: dict[int, str] | None) -> None:
        """Settle the good pages of a claim that has been read; `wrong` is None if reading stopped."""
        pids, slots = ticket.missing[mine], ticket.slots[mine]
        self._coming.difference_update(pids.tolist())
        good = np.array([wrong is not None and pid not in wrong for pid in pids.tolist()], dtype=bool)
        self._residency.settle(self._host, slots[good], pids[good])
        self._lease(ticket, self._host, slots[good])
        self._host.free(slots[~good])
        ticket.missing, ticket.slots = np.delete(ticket.missing, mine), np.delete(ticket.slots, mine)
        moved = int(good.sum()) * self._host.page_bytes
        self._residency.counters.disk_to_host_bytes += moved
        if ticket.is_ahead:
            self._table.ahead[pids[good]] = True
            self._residency.counters.add(prefetched_bytes=moved)
        self._lock.notify_all()

    def rounds_beyond(self, ticket: Ticket) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Read the pages without a slot, a few at a time. Yields ids and bytes `[n, page_bytes]`, valid until the next
        round."""
        if not len(ticket.beyond):
            return
        with self._reader:
            if self._staging is None:
                rows = max(1, _STAGING_BYTES // self._host.page_bytes)
                self._staging = torch.empty(rows, self._host.page_bytes, dtype=torch.uint8)
            for start in range(0, len(ticket.beyond), len(self._staging)):
                pids = ticket.beyond[start : start + len(self._staging)]
                staged = self._staging[: len(pids)]
                ticket.failures.update(self._read(pids, list(staged.numpy())))
                self._residency.counters.disk_to_host_bytes += staged.nbytes
                yield pids, staged

    def _read(self, pids: np.ndarray, buffers: list[np.ndarray]) -> dict[int, str]:
        """Read and verify pages into `buffers`, one thread at a time. Returns why a page cannot be used, by page id."""
        assert self._disk is not None, "a page is in no tier"
        if self._closed:
            raise ClosedError("the store is closed")
        keys = [self._table.keys[pid] for pid in pids.tolist()]
        compression = self._compression()
        with self._links.disk.moving() as transfer, compression.reading():
            transfer.num_bytes = len(pids) * self._host.page_bytes
            wrong = self._disk.read_pages(keys, self._table.tokens[pids], buffers.__getitem__, compression.readers)
        return {int(pids[i]): why for i, why in wrong.items()}

    def report(self, ticket: Ticket) -> None:
        """Raise CorruptPageError if pages of the ticket cannot be used."""
        if ticket.failures:
            named = [f"{self._table.keys[pid].hex()}: {why}" for pid, why in ticket.failures.items()]
            raise CorruptPageError(
                f"{len(named)} stored page(s) cannot be used ({'; '.join(named[:3])})", list(ticket.failures)
            )

    def end(self, ticket: Ticket, *, keep_unstored: bool) -> None:
        """Give leases, references and unused slots back, once. The caller holds the lock."""
        assert ticket in self._open, "a ticket was ended twice"
        self._open.remove(ticket)
        for arena, slots in ticket.leases:
            arena.unlease(slots)
        self._host.free(ticket.slots)
        ticket.leases, ticket.slots, ticket.missing = [], ticket.slots[:0], ticket.missing[:0]
        self._residency.release(ticket.pids, keep_unstored=keep_unstored)
        self._lock.notify_all()

    def close(self) -> None:
        """Refuse further reads. When this returns, no read is under way."""
        with self._reader:
            self._closed = True

    def check_integrity(self) -> None:
        """Leases and reserved slots are those of open tickets, exactly; raises AssertionError."""
        for arena in self._residency.tiers():
            expected = np.zeros_like(arena.leases)
            for ticket in self._open:
                for leased, slots in ticket.leases:
                    if leased is arena:
                        expected[slots] += 1
            assert (arena.leases == expected).all(), f"{arena.name}: a lease outlived its ticket"
        for ticket in self._open:
            assert (self._host.state[ticket.slots] == FILLING).all(), "a ticket's slot was given to somebody else"
            assert (self._table.refs[ticket.pids] > 0).all(), "a ticket's page lost its reference"

    def _lease(self, ticket: Ticket, arena: Arena, slots: np.ndarray) -> None:
        if len(slots):
            arena.lease(slots)
            ticket.leases.append((arena, slots))
