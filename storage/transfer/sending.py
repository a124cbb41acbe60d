"""Whole pages to the device on a lane of their own: the host tells the copies and waits for none of them.

    device pool    copied there by the device, in the order of its other work
    host           on the lane, neighbouring slots in one copy. An eviction from the host waits for it (`InFlight`)
    disk           read into host memory first; what that has no room for, round by round

Other pages are left where they are: a text that is longer than the pool is read from its beginning to its end, again
and again, so whatever came last would make way for nothing that is read sooner. What has arrived may be kept in the
pool's empty slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..memory.arena import RESIDENT
from ..memory.residency import Residency
from .lane import Lane, for_device
from .links import Links
from .loading import Loader, Ticket


class Sending:
    """Of a store with a device pool. Any thread may send.

    Args:
        still: keeps pages where they are for the length of a block.
        passing: begins a ticket for pages, which ends with the block.
    """

    def __init__(
        self, residency: Residency, loader: Loader, links: Links, still: Callable[[], AbstractContextManager[None]],
        passing: Callable[[np.ndarray], AbstractContextManager[Ticket]],
    ) -> None:  # fmt: skip
        self._residency, self._loader, self._links = residency, loader, links
        self._still, self._passing = still, passing

    def send(self, pids: np.ndarray, out: Tensor, lane: Lane) -> None:
        """Pages `[p]`, distinct, into `out` `[p, page_bytes / itemsize]` on the device. They are there at the lane's
        next arrival, for what the device is told from now on. Raises CorruptPageError; `out` is then unspecified."""
        with self._links.host.moving() as transfer, self._still():
            if self._residency.table.is_resident(pids).all():
                self._residency.clock += 1
                self._residency.touch(pids)
                near = int(np.count_nonzero(self._residency.table.gpu_slot[pids] >= 0))
                self._residency.counters.gpu_reads += near
                self._residency.counters.host_reads += len(pids) - near
                transfer.num_bytes = self._copy(pids, out, lane)
                return
        with self._passing(pids) as ticket:
            self._loader.count_reads(ticket)
            self._loader.finish(ticket)
            with self._links.host.moving() as transfer, self._residency.lock:
                transfer.num_bytes = self._copy(pids, out, lane)
            for some, staged in self._loader.rounds_beyond(ticket):
                order = np.argsort(pids)
                at = order[np.searchsorted(pids, some, sorter=order)]
                out.view(torch.uint8)[torch.from_numpy(at).to(out.device)] = staged.to(out.device)
            self._loader.report(ticket)

    def keep(self, pids: np.ndarray, pages: Tensor) -> None:
        """Keep `pages`, which were sent and have arrived, in empty slots of the pool, as far as there are some within
        the layer's share. The caller holds references to `pids` `[p]`."""
        gpu, table = self._residency.gpu, self._residency.table
        assert gpu is not None
        with self._residency.lock:
            wanted = np.flatnonzero(table.gpu_slot[pids] < 0)
            if not (gpu.num_free and len(wanted)):
                return
            layer = int(table.layer[pids[0]])
            held = int(np.count_nonzero((gpu.state == RESIDENT) & (gpu.layer == layer)))
            room = gpu.num_slots // max(self._residency.num_layers, 1) - held - self._residency.reserved.get(layer, 0)
            slots = gpu.take(max(0, min(len(wanted), room)), layer)
            if len(slots):
                wanted = wanted[: len(slots)]
                found = pages.index_select(0, _told(wanted, pages))
                gpu.rows(1).view(pages.dtype).index_copy_(0, _told(slots, pages), found)
                self._residency.settle(gpu, slots, pids[wanted])

    def _copy(self, pids: np.ndarray, out: Tensor, lane: Lane) -> int:
        """Copy those that are in memory. Returns the bytes that come from the host. The caller holds the lock."""
        self._residency.note_read(pids)
        near = self._copy_near(pids, out)
        moved = self._copy_far(np.where(near, -1, self._residency.table.host_slot[pids]), out, lane)
        self._residency.counters.host_to_gpu_bytes += moved
        return moved

    def _copy_near(self, pids: np.ndarray, out: Tensor) -> np.ndarray:
        """Copy the pages that lie in the pool; returns which they are, bool `[p]`."""
        gpu, slots = self._residency.gpu, self._residency.table.gpu_slot[pids]
        near: np.ndarray = slots >= 0
        if near.any():
            assert gpu is not None
            found = gpu.rows(1).view(out.dtype).index_select(0, _told(slots[near], out))
            out.index_copy_(0, _told(np.flatnonzero(near), out), found)
        return near

    def _copy_far(self, slots: np.ndarray, out: Tensor, lane: Lane) -> int:
        """Copy pages from these slots `[p]` of host memory, those of 0 and more. Returns the bytes that will move."""
        host, flat, moved = self._residency.host, out.view(torch.uint8).view(-1), 0
        try:
            for place, slot, count in runs(slots):
                at = place * host.page_bytes
                for piece in host.pieces(slot, count):
                    lane.copy(flat[at : at + len(piece)], piece)
                    at, moved = at + len(piece), moved + len(piece)
        finally:
            lane.note(host.in_flight)
        return moved


def runs(slots: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Where each run of neighbouring slots begins in `slots` `[p]`, its first slot, and its length. Those below 0 are
    in none."""
    slots = np.where(slots < 0, -2, slots)  # -1 and 0 would be neighbours
    ends = (np.flatnonzero(np.diff(slots) != 1) + 1).tolist()
    for first, end in pairwise([0, *ends, len(slots)] if len(slots) else []):
        if slots[first] >= 0:
            yield first, int(slots[first]), end - first


def _told(numbers: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like`, without waiting for it."""
    return for_device(numbers, like.device).to(like.device, non_blocking=True)
