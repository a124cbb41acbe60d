"""New pages: a page enters host memory whole, gets its id, and is queued for disk.

On a machine with a gpu tier a page is filled there and copied down when it is sealed: the host copy is the one
that is written, the gpu copy is spare from the start.

Waiting    Waiting for room gives up the lock, so what was found before is looked at again afterwards.
           It is done only for what ends by itself: the writer, which makes pages clean, and gathers under way,
           which hold leases. An open ticket is not waited for: whoever holds it may be the one who waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CapacityError
from ..memory.arena import Arena
from ..memory.page_table import NO_SLOT
from ..memory.residency import Residency
from ..page import page_key
from . import clock
from .loading import Loader
from .write_behind import WriteBehind


@dataclass(slots=True)
class OpenPage:
    """A page being filled: `bytes` is its slot's memory, uint8 `[page_bytes]`, writable until sealed."""

    layer: int
    slot: int
    bytes: torch.Tensor


class Intake:
    """Everything here runs under the store's lock."""

    def __init__(self, residency: Residency, loader: Loader, writing: WriteBehind) -> None:
        self._residency, self._loader, self._writing = residency, loader, writing
        self._host, self._gpu = residency.host, residency.gpu
        self._table, self._counters = residency.table, residency.counters

    def open(self, arena: Arena, layer: int) -> OpenPage:
        slot = int(self._room(arena, 1, layer)[0])
        return OpenPage(layer, slot, arena.data[slot])

    def seal(self, page: OpenPage, chain: bytes, tokens: np.ndarray) -> int:
        """See `TieredStore.seal`."""
        known = self.share(page_key(page.layer, chain), tokens)
        slot = np.array([page.slot])
        if known is not None:
            (self._gpu or self._host).free(slot)
            return known
        host_slot = self._room(self._host, 1, page.layer) if self._gpu is not None else slot
        pid = self._table.add(page.layer, chain, tokens)
        if self._gpu is not None:
            self._host.data[int(host_slot[0])].copy_(page.bytes)
            self._counters.gpu_to_host_bytes += self._host.page_bytes
            self._residency.settle(self._gpu, slot, np.array([pid]))
        self._keep(host_slot, np.array([pid]))
        return pid

    def put(self, layer: int, chains: Sequence[bytes], tokens: np.ndarray, data: torch.Tensor) -> np.ndarray:
        """See `TieredStore.put`."""
        pids = np.empty(len(chains), dtype=np.int64)
        done = 0
        while done < len(chains):
            known = self.share(page_key(layer, chains[done]), tokens[done])
            if known is not None:
                pids[done] = known
                done += 1
                continue
            run = done + 1
            while run < len(chains) and page_key(layer, chains[run]) not in self._table.pids:
                run += 1
            try:
                slots = np.sort(self._room(self._host, run - done, layer))  # neighbours can be copied in one
            except CapacityError:
                self._residency.release(pids[:done], keep_unstored=self._writing.will_store)
                raise
            stop = done + len(slots)
            fresh = [self._table.add(layer, chains[i], tokens[i]) for i in range(done, stop)]
            self._host.data[torch.from_numpy(slots)] = data[done:stop].to(self._host.data.device)
            if data.is_cuda:
                self._counters.gpu_to_host_bytes += len(slots) * self._host.page_bytes
            self._keep(slots, np.array(fresh))
            pids[done:stop] = fresh
            done = stop
        return pids

    def replace(self, pid: int, data: torch.Tensor) -> None:
        """See `TieredStore.replace`."""
        spare = self._room_beside(pid)
        if self._table.host_slot[pid] == NO_SLOT:
            self._residency.settle(self._host, spare, np.array([pid]))
        else:
            self._host.free(spare)
        for arena in self._residency.tiers():
            slot = int(self._residency.slots_of(arena)[pid])
            if slot != NO_SLOT:
                arena.data[slot].copy_(data)
        self._table.stored[pid] = False
        self._counters.pages_recomputed += 1
        if not self._writing.is_queued(pid):
            self._writing.enqueue(pid)

    def _room_beside(self, pid: int) -> np.ndarray:
        """Wait until nobody reads or encodes the page. Returns a slot for it if it then has none, else an empty
        array."""
        spare = np.empty(0, dtype=np.int64)
        while True:
            if self._writing.is_encoding or self._loader.is_coming(pid):
                self._residency.lock.wait()
            elif self._table.host_slot[pid] != NO_SLOT or len(spare):
                return spare
            else:
                spare = self._room(self._host, 1, int(self._table.layer[pid]))

    def share(self, key: bytes, tokens: np.ndarray) -> int | None:
        pid = self._table.share(key, tokens)
        if pid is not None:
            self._counters.pages_shared += 1
        return pid

    def _keep(self, slots: np.ndarray, pids: np.ndarray) -> None:
        """Make new pages, whole in host slots, resident, and queue them for disk."""
        self._residency.settle(self._host, slots, pids)
        for pid in pids.tolist():
            self._writing.enqueue(pid)

    def _room(self, arena: Arena, count: int, layer: int) -> np.ndarray:
        """Take 1 to `count` slots, waiting for what ends by itself: the writer, and other threads' gathers."""
        started, tried = clock.now(), False
        while not len(slots := self._residency.take_or_evict(arena, count, layer, force=True)):
            if self._writing.disk_error and not tried:
                tried = True
                self._writing.try_disk_again()
                continue
            if not (self._writing.is_busy or self._residency.num_passing):
                raise CapacityError(self._full_message(arena))
            self._residency.lock.wait()
            self._counters.add(stall_s=clock.now() - started)
            started = clock.now()
        return slots

    def _full_message(self, arena: Arena) -> str:
        knob = "gpu_gb" if arena is self._gpu else "host_gb"
        reason = f"; {self._writing.disk_error}" if self._writing.disk_error else ""
        return (
            f"the {arena.name} tier is full: {arena.num_slots} pages of {arena.page_bytes} bytes "
            f"under a cap of {arena.cap_bytes}, none of which may leave it; raise {knob}{reason}"
        )
