"""The places of pages in memory, and making room there. Everything here runs under the store's lock.

Invariants  (1) `table.host_slot[p] == s` exactly if `host.page[s] == p`; the same for the gpu
            (2) a page leaves host memory only if its disk record is committed; gpu copies are always spare
            (3) a page without references has an id only while memory holds it
            (4) a page with references keeps its id, and an open ticket is a reference
Order of an eviction   EVICTING, the table forgets the slot, FREE: no reader can find a slot that is half gone.
"""

from __future__ import annotations

import threading

import numpy as np

from ..counters import Counters
from ..page import CHAIN_BYTES
from .arena import NO_PAGE, Arena
from .eviction import victims
from .page_table import NO_SLOT, PageTable


class Residency:
    """The memory tiers and the page table, which change together."""

    def __init__(self, host: Arena, gpu: Arena | None, table: PageTable, num_layers: int, counters: Counters) -> None:
        self.host, self.gpu, self.table = host, gpu, table
        self.num_layers = num_layers
        self.counters = counters
        self.lock = threading.Condition(threading.RLock())
        """Guards all bookkeeping; notified when pages become clean, loads end, or the store closes."""
        self.clock = 0
        self.num_passing = 0
        """Number of gathers and loads under way: their leases end without anybody's doing."""
        self.reserved: dict[int, int] = {}
        """By layer, the number of slots of the gpu pool that hold copies of parts of pages."""
        self.counted: set[bytes] = set()
        """Chains that `num_known` last counted: the caller is about to adopt them, so the writer lets them be."""

    def slots_of(self, arena: Arena) -> np.ndarray:
        """The page table's column of slots for a tier, int64 by page id."""
        return self.table.gpu_slot if arena is self.gpu else self.table.host_slot

    def tiers(self) -> list[Arena]:
        """Memory tiers, fastest first."""
        return [self.host] if self.gpu is None else [self.gpu, self.host]

    def settle(self, arena: Arena, slots: np.ndarray, pids: np.ndarray) -> None:
        """Record that `slots`, which are now filled, hold these pages."""
        arena.settle(slots, pids, self.clock)
        self.slots_of(arena)[pids] = slots

    def note_read(self, pids: np.ndarray) -> None:
        """Note that somebody wanted these pages: those that came ahead of need were useful."""
        came = self.table.ahead[pids]
        if came.any():
            self.table.ahead[pids] = False
            self.counters.add(useful_prefetched_bytes=len(np.unique(pids[came])) * self.host.page_bytes)

    def touch(self, pids: np.ndarray) -> None:
        for arena in self.tiers():
            slots = self.slots_of(arena)[pids]
            arena.last_use[slots[slots >= 0]] = self.clock

    def take_or_evict(self, arena: Arena, count: int, layer: int, *, force: bool = False) -> np.ndarray:
        """Take up to `count` slots (FILLING), evicting others where needed; fewer if nothing else may go."""
        slots = arena.take(count, layer)
        if len(slots) == count:
            return slots
        evictable = self.table.stored[arena.page] if arena is self.host else np.ones(arena.num_slots, dtype=bool)
        cold = self.table.cold[arena.page]
        gone = victims(arena, count - len(slots), evictable, cold, layer, self.num_layers, force=force)
        if len(gone):
            self.evict(arena, gone)
            slots = np.concatenate([slots, arena.take(len(gone), layer)])
        return slots

    def reserve(self, layer: int, count: int) -> np.ndarray:
        """Take up to `count` slots of the gpu pool (FILLING) for copies of parts of pages. A layer's open and resident
        pages keep a quarter of its share."""
        if self.gpu is None:
            return np.empty(0, dtype=np.int64)
        held = self.reserved.get(layer, 0)
        spare = self.gpu.num_slots // max(self.num_layers, 1) * 3 // 4 - held
        slots = self.take_or_evict(self.gpu, max(0, min(count, spare)), layer)
        self.reserved[layer] = held + len(slots)
        return slots

    def unreserve(self, layer: int, slots: np.ndarray) -> None:
        assert self.gpu is not None
        self.gpu.free(slots)
        self.reserved[layer] -= len(slots)

    def num_unstored(self) -> int:
        """Number of pages that only host memory holds."""
        pids = self.host.page[self.host.page != NO_PAGE]
        return int((~self.table.stored[pids]).sum())

    def evict(self, arena: Arena, slots: np.ndarray) -> None:
        """Remove the pages in `slots` from this tier. A page that is then in no tier and that nobody refers to is
        forgotten."""
        table = self.table
        pids = arena.evict(slots)
        if arena is self.host:
            assert table.stored[pids].all(), "evicting a page that is not on disk"
            self.counters.add(wasted_prefetched_bytes=int(table.ahead[pids].sum()) * arena.page_bytes)
            table.ahead[pids] = False
        self.slots_of(arena)[pids] = NO_SLOT
        arena.free(slots)
        unwanted = pids[table.refs[pids] == 0]
        if arena is self.gpu:
            unwanted = unwanted[table.host_slot[unwanted] == NO_SLOT]
        for pid in unwanted.tolist():
            self.forget(pid)

    def forget(self, pid: int) -> None:
        """Drop the copies in memory of a page that nobody refers to, and recycle its id."""
        assert self.table.refs[pid] == 0, f"page {pid} is forgotten with {self.table.refs[pid]} references"
        for arena in self.tiers():
            column = self.slots_of(arena)
            slot = column[[pid]]
            column[pid] = NO_SLOT
            if slot[0] >= 0:
                arena.evict(slot)
                arena.free(slot)
        self.table.remove(pid)

    def release(self, pids: np.ndarray, *, keep_unstored: bool) -> None:
        """Drop one reference each. Pages that nobody needs and nothing can bring back are forgotten.

        Args:
            keep_unstored: pages not yet on disk will get there, and may then stay as cache.
        """
        table = self.table
        np.subtract.at(table.refs, pids, 1)
        assert (table.refs[pids] >= 0).all(), "a page was released twice"
        for pid in np.unique(pids[table.refs[pids] == 0]).tolist():
            may_stay = table.stored[pid] or (keep_unstored and not table.kept_out[pid])
            if not may_stay or not table.is_resident(np.array([pid]))[0]:
                self.forget(pid)

    def forget_unbacked(self, pids: np.ndarray | None = None) -> None:
        """Forget pages that will not be written (None: none will be) and that nobody refers to: they would only hold
        room."""
        pids = self.host.page[self.host.page != NO_PAGE] if pids is None else pids
        for pid in pids[(self.table.refs[pids] == 0) & ~self.table.stored[pids]].tolist():
            if self.table.keys[pid][-CHAIN_BYTES:] not in self.counted:
                self.forget(pid)

    def check_integrity(self) -> None:
        """Check the invariants at the top of this file from scratch; raises AssertionError."""
        table, live = self.table, self.table.live()
        for arena in self.tiers():
            arena.check_integrity()
            slots = self.slots_of(arena)
            here = live[slots[live] >= 0]
            assert (arena.page[slots[here]] == here).all(), f"{arena.name}: slots and table differ"
            assert len(here) == arena.num_pages, f"{arena.name}: a slot holds a forgotten page"
        somewhere = (table.host_slot[live] >= 0) | table.stored[live]
        assert somewhere[table.refs[live] > 0].all(), "a referenced page is nowhere"
        assert (table.refs[live] >= 0).all(), "negative references"
        assert table.is_resident(live[table.refs[live] == 0]).all(), "a page nobody can use has an id"
        assert all(table.keys[pid] == key for key, pid in table.pids.items()), "keys and ids differ"
