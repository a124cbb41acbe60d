"""Gathers: the asked parts of pages, from wherever they are, into one buffer.

    begin --> read what is missing --> promote --> copy rows from memory --> copy rows of pages beyond --> end
    (lock)    (no lock)                (lock)      (lock)                    (no lock, round by round)

Where every page is in the fastest memory tier, all this is one copy under the lock, without a ticket. Otherwise
the ticket's leases hold every page where it is from `begin` to `end`, so what was found stays found. Rows are
copied under the lock: it is memory bandwidth, and the device's order of work needs no further care.
"""

from __future__ import annotations

import numpy as np
import torch

from ..memory.residency import Residency
from . import clock
from .links import Links, Transfer
from .loading import Loader, Ticket


class Gatherer:
    """Serves tickets that the store has begun and will end."""

    def __init__(self, residency: Residency, loader: Loader, links: Links) -> None:
        self._residency, self._loader, self._links = residency, loader, links

    def gather_nearest(
        self, pids: np.ndarray, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: torch.Tensor
    ) -> bool:
        """Do the whole gather and return True if all pages are in the fastest memory tier; otherwise do nothing and
        return False. The caller holds the lock."""
        arena = self._residency.tiers()[0]
        slots = self._residency.slots_of(arena)[pids]
        if (slots < 0).any():
            return False
        self._residency.clock += 1
        self._residency.touch(pids)
        if arena is self._residency.gpu:
            self._residency.counters.gpu_reads += len(pids)
        else:
            self._residency.counters.host_reads += len(pids)
            self._residency.note_read(pids)
        self._copy_rows(pids, pages, parts_of, parts, out, Transfer())
        return True

    def gather(
        self, ticket: Ticket, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: torch.Tensor, *, promote: bool
    ) -> None:
        """See `TieredStore.gather`. Raises CorruptPageError."""
        counters = self._residency.counters
        if not ticket.is_ahead:
            self._loader.count_reads(ticket)
        self._loader.finish(ticket)
        started = clock.now()
        link = self._links.host
        with link.sending() if ticket.is_ahead else link.moving() as transfer, self._residency.lock:
            self._residency.note_read(ticket.pids)
            if self._residency.gpu is not None and promote and not ticket.failures:
                self._promote(ticket.pids, transfer)
            pending = self._copy_rows(ticket.pids, pages, parts_of, parts, out, transfer)
            counters.host_to_gpu_bytes += transfer.num_bytes
        if pending.any():
            self._copy_staged(ticket, pending, ticket.pids[pages], parts_of, parts, out)
        if not ticket.is_ahead and (transfer.num_bytes or pending.any()):
            counters.add(stall_s=clock.now() - started)
        self._loader.report(ticket)

    def _promote(self, pids: np.ndarray, transfer: Transfer) -> None:
        """Copy host pages into the gpu pool, as far as it has room beside the pages that this call reads."""
        gpu, table = self._residency.gpu, self._residency.table
        assert gpu is not None
        wanted = pids[(table.gpu_slot[pids] < 0) & (table.host_slot[pids] >= 0)]
        if not len(wanted):
            return
        held = table.gpu_slot[pids]
        with gpu.leased(held[held >= 0]):
            slots = self._residency.take_or_evict(gpu, len(wanted), int(table.layer[wanted[0]]))
        wanted = wanted[: len(slots)]
        if not len(wanted):
            return
        source = self._residency.host.data[torch.from_numpy(table.host_slot[wanted])]
        gpu.data[torch.from_numpy(slots).to(gpu.data.device)] = source.to(gpu.data.device)
        self._residency.settle(gpu, slots, wanted)
        transfer.num_bytes += len(wanted) * gpu.page_bytes

    def _copy_rows(
        self, pids: np.ndarray, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: torch.Tensor,
        transfer: Transfer,
    ) -> np.ndarray:  # fmt: skip
        """Copy the rows whose pages are in memory. Returns True for each row that is not copied, bool `[m]`."""
        pending = np.ones(len(pages), dtype=bool)
        for arena in self._residency.tiers():
            slots = self._residency.slots_of(arena)[pids][pages]
            here = pending & (slots >= 0)
            if not here.any():
                continue
            rows = torch.from_numpy(slots[here] * parts + parts_of[here]).to(arena.data.device)
            source = arena.rows(parts).view(out.dtype)
            pending &= ~here
            if here.all() and source.device == out.device:
                torch.index_select(source, 0, rows, out=out)
            else:
                _place(out, here, source.index_select(0, rows))
            if arena is not self._residency.tiers()[0]:
                transfer.num_bytes += len(rows) * out.shape[1] * out.element_size()
        return pending

    def _copy_staged(
        self, ticket: Ticket, pending: np.ndarray, pid_of: np.ndarray, parts_of: np.ndarray, parts: int,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Copy the rows of pages that the host has no room for, round by round."""
        for pids, staged in self._loader.rounds_beyond(ticket):
            here = pending & np.isin(pid_of, pids)
            order = np.argsort(pids)
            place = order[np.searchsorted(pids, pid_of[here], sorter=order)]
            rows = torch.from_numpy(place * parts + parts_of[here])
            _place(out, here, staged.view(len(pids) * parts, -1).view(out.dtype).index_select(0, rows))


def _place(out: torch.Tensor, here: np.ndarray, found: torch.Tensor) -> None:
    out[torch.from_numpy(here).to(out.device)] = found.to(out.device)
