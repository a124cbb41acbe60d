"""A row cache that the device keeps itself: nothing of a read returns to the host, which need not wait for it.

    place    which of the chosen units are here, and an entry for each that is not (`kernels.place_units`)
    fetch    those that are not, straight from the pages in host memory (`kernels.fetch_units`)
    read     the chosen units, side by side

It serves sequences whose pages all lie in host memory that the device can read. As with `row_cache`, what is read does
not depend on what is here; which entry a unit takes does not depend on where this is computed.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ...kernels.fetch_units import Wanted, fetch_units
from ...kernels.launch import reaches_from
from ...kernels.place_units import ABSENT, NEVER, Places, place_units
from ...storage import Arena
from .reserved_rows import ReservedRows

logger = logging.getLogger(__name__)
_UNITS = 1024
"""The least room for units in a table, which grows with the text."""


class DeviceRows:
    """Copies in `rows`, by tables on their device."""

    def __init__(self, rows: ReservedRows) -> None:
        self._reserved, self._layout = rows, rows.store.layout
        self.unit, self.sides, self.num_entries = rows.unit, rows.sides, rows.num_entries
        device = rows.data.device
        with torch.inference_mode(False):  # who writes there later need not be in that mode
            self._row_of = torch.from_numpy(rows.row_of).view(rows.sides, rows.groups, -1).to(device)
            self._places = Places.empty(rows.groups, _UNITS, rows.num_entries, device)
            self._counted = torch.zeros(2, dtype=torch.int64, device=device)
            """Units asked for since the last `count`, and those of them that were not here."""
        self.slots, self.has_read = rows.slots, False
        """Whether it has been asked for units since the last `count`."""
        self._asked_in_step = 0

    def begin_step(self) -> None:
        """A step begins: entries that earlier steps read may be replaced from now on."""
        self._places.clock.add_(1)
        self._asked_in_step = 0

    def read(self, ids: Tensor, host: Arena, table: Tensor, out: Tensor) -> None:
        """The units `ids` int64 `[G, n]` into `out` `[sides * G * n, unit * D]`: side by side, head by head, in the
        order of `ids`. The reads of a step ask for at most `num_entries` units of a head.

        Args:
            host, table: where the pages lie: slots int32 `[pages]` of `host`. The store is still.
        """
        self.make_room(len(table) * self._layout.page_size // self.unit)
        entries = self.find(ids, host, table)
        at = self._row_of.gather(2, entries.long().expand(self.sides, -1, -1))
        torch.index_select(self._reserved.data, 0, at.flatten(), out=out)

    def find(self, ids: Tensor, host: Arena, table: Tensor, counts: Tensor | None = None) -> Tensor:
        """The entries int32 `[G, n]` that hold the units `ids` from now on. The other arguments are as in `read`; there
        is room for the units of all pages.

        Args:
            counts: int64 `[G]`, how many ids of each head count, the first ones; None: all.
        """
        rows, layout, ids = self._reserved, self._layout, ids.contiguous()
        self._asked_in_step += ids.shape[1]
        assert self._asked_in_step <= self.num_entries, "a step would lose what it reads"
        try:
            entries, lacking = place_units(ids, self._places, counts)
            wanted = Wanted(ids, entries, lacking, table, self._row_of, layout.sides, layout.page_size // self.unit)
            fetch_units(host.rows(rows.parts).view(rows.data.dtype), wanted, rows.data)
            asked = ids.new_full((len(ids),), ids.shape[1]) if counts is None else counts
            self._counted += torch.stack([asked.sum(), lacking.sum()])
        except BaseException:
            self.truncate(0)  # the tables tell of units that have not come
            raise
        self.has_read = True
        return entries

    @property
    def are_open(self) -> bool:
        """Nobody has closed them."""
        return self._reserved.are_open

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """All tensors that a read goes by: it can be repeated as recorded while they lie where they lie."""
        return *self._places, self._row_of, self._counted, self._reserved.data

    def make_room(self, units: int) -> None:
        """Let the table hold so many units of each head."""
        held = self._places.entry_of
        if units < held.shape[1]:
            return
        room = max(_UNITS, units + units // 8)
        with torch.inference_mode(False):
            wider = torch.full((len(held), room + 1), ABSENT, dtype=held.dtype, device=held.device)
        wider[:, : held.shape[1] - 1] = held[:, :-1]  # the last column is nobody's
        self._places = self._places._replace(entry_of=wider)

    def count(self) -> None:
        """Add what was read since the last time to the store's counters. Waits for the device."""
        if not self.has_read:
            return
        (asked, missed), store = self._counted.tolist(), self._reserved.store
        pages = -(-missed * self.unit // (self._layout.page_size * self._reserved.groups))
        store.counters.add(
            row_hits=asked - missed, row_misses=missed, host_reads=pages,
            host_to_gpu_bytes=missed * self._reserved.entry_bytes,
        )  # fmt: skip
        self.has_read = False
        self._counted.zero_()

    def truncate(self, num_units: int) -> None:
        """Forget units from `num_units` on; 0 forgets everything."""
        unit_of, last_use = self._places.unit_of, self._places.last_use
        goes = unit_of >= num_units
        unit_of.masked_fill_(goes, ABSENT)
        last_use.masked_fill_(goes, NEVER)
        self._places.entry_of[:, num_units:] = ABSENT

    def close(self) -> None:
        """Give the slots back. Nothing may be called afterwards."""
        self.count()
        self._reserved.close()


def is_reached(arena: Arena, device: torch.device) -> bool:
    """Whether kernels on `device` read this memory as the host does: a CPU does; a GPU, once all of it is pinned, is
    asked to copy a page, the first time. There is one, and the store is still."""
    if device.type == "cpu":
        return True
    if arena.reached is None and arena.is_pinned:
        arena.reached = reaches_from(device, arena.data) and _copies_a_page(arena, device)
    return bool(arena.reached)


def _copies_a_page(arena: Arena, device: torch.device) -> bool:
    slot = int(np.flatnonzero(arena.page >= 0)[-1])  # nobody writes there; far from where pinning began
    nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
    wanted = Wanted(nothing, nothing.int(), nothing == 0, nothing[0].int() + slot, nothing.view(1, 1, 1), 1, 1)
    page = torch.zeros(1, arena.page_bytes, dtype=torch.uint8, device=device)
    try:
        fetch_units(arena.data, wanted, page)
        copied = page[0].cpu()
    except (RuntimeError, ValueError) as error:  # of CUDA; of Triton, for an address that it may not read
        why = str(error)
    else:
        if torch.equal(copied, arena.data[slot]):
            return True
        why = "it read other bytes"
    logger.warning("the device cannot read host memory itself, so decode waits for copies: %s", why)
    return False
