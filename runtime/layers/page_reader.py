"""Fetching the KV of one layer: from unit ids to rows of pages in the store.

A page is laid out `[G, S, L, D]`, so one head's keys of one unit are `unit * D` contiguous elements:
one *part* of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.fetch_units import parts_of
from ...storage import CorruptPageError
from .device_rows import DeviceRows, is_reached
from .page_slots import PageSlots
from .pages import LayerPages, keys_values
from .reserved_rows import ReservedRows
from .row_cache import RowCache
from .step_pages import EntryPages, HostEntries, PoolPages, SpanPages, StepPages
from .workspace import KEY_BLOCK, Workspace

Recover = Callable[[list[int]], None]
"""Recompute damaged pages, given their page ids."""
Cache = TypeVar("Cache", RowCache, DeviceRows)
_ROOM = 2
"""Selections that a row cache holds, if the pool has room: what was read lately and is not now comes back soon."""


class PageReader:
    """The `retrieval.reading.Reader` of one layer of one sequence; lives as long as the layer, reads all of its pages.

    Where the pages of the sequence do not fit the device pool, it keeps what steps choose there in row caches, which
    it owns. What a read returns is good until the next one of any layer.

    Args:
        pages: of the layer.
        recover: called with damaged pages; they are read once more after it.
        chosen_on_host: what a step chooses is attended to on the CPU.
    """

    max_tokens = KEY_BLOCK

    def __init__(
        self, pages: LayerPages, workspace: Workspace, recover: Recover, *, chosen_on_host: bool = False
    ) -> None:
        self._pages, self._store, self._workspace, self._recover = pages, pages.store, workspace, recover
        self._chosen_on_host = chosen_on_host
        self._budget: int | None = None
        self._caches: dict[tuple[int, int], RowCache | DeviceRows | None] = {}
        """The row caches by tokens per unit and number of sides. None: the pool has no room for one."""
        self._slots: dict[str, PageSlots] = {}
        """By tier, where the pages lie, for a device that looks for itself."""
        self._has_read_itself = False
        """Whether it has, since the last `count`."""
        if (gpu := self._store.gpu) is not None:
            tiers = (gpu, self._store.host)
            self._slots = {arena.name: PageSlots(pages, arena, gpu.data.device) for arena in tiers}

    @property
    def page_size(self) -> int:
        return self._store.layout.page_size

    def begin_step(self, budget: int | None) -> None:
        """A step begins to read, by `keys_values` and `values`.

        Args:
            budget: tokens that it chose to read for each head; None: it reads all there are.
        """
        self._budget = budget
        for cache in self._kept():
            cache.begin_step()

    def keys_values(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        return keys_values(self._read(ids, unit, self._store.layout.sides), self._store.layout)

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self._read(ids, unit, 1)[0]

    def pages(self, pages: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values `[G, n * L, D]` of whole pages, numbered from the sequence's first."""
        layout = self._store.layout
        ids = np.broadcast_to(pages, (layout.num_heads, len(pages))).copy()
        return keys_values(self._gather(self._workspace, ids, layout.page_size, layout.sides, promote=True), layout)

    def block(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[G, end - begin, D]` by position, whole pages."""
        size = self._store.layout.page_size
        return self.pages(np.arange(begin // size, end // size))

    def blocks(self, end: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values `[G, tokens, D]` of the whole pages before `end`, from the first on; at the end fewer. Each
        is good until the next is asked for. Beside a device that has room for it, more is on its way by then."""
        size = self._store.layout.page_size
        if self._workspace.past is None or self._store.gpu is None or tokens % size:
            for begin in range(0, end, tokens):
                yield self.block(begin, min(begin + tokens, end))
            return
        pids = [self._pages.pids[begin // size : min(begin + tokens, end) // size] for begin in range(0, end, tokens)]
        yield from self._workspace.past.read(self._store, pids, self._unpacked, self._recover)

    def _unpacked(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[G, n * L, D]` of pages `[n, G * S * L * D]`."""
        layout = self._store.layout
        out = self._workspace.stage(layout.sides * layout.num_heads * len(pages), layout.page_size * layout.head_dim)
        by_head = pages.view(len(pages), layout.num_heads, layout.sides, -1).permute(2, 1, 0, 3)
        out.view(by_head.shape).copy_(by_head)
        return keys_values(self._shaped(self._workspace, out, layout.sides, layout.page_size), layout)

    def _read(self, units: Tensor, unit: int, sides: int) -> Tensor:
        """Pages that are read whole move up to the device pool while it has room; otherwise the asked parts alone."""
        if self._budget is not None and self._chosen_on_host:
            return self._gather(self._workspace.on_host, units.cpu().numpy(), unit, sides, promote=False)
        out = self._workspace.stage(sides * units.numel(), unit * self._store.layout.head_dim)
        if self._read_on_device(units, unit, sides, out):
            return self._shaped(self._workspace, out, sides, unit)
        ids, cache = units.cpu().numpy(), None
        if self._budget is not None and not self._fits_the_pool:
            cache = self._row_cache(RowCache, unit, sides, self._budget)
        if cache is None:
            return self._gather(self._workspace, ids, unit, sides, promote=sides == self._store.layout.sides)
        cache.read(ids, out, self._fetch)
        return self._shaped(self._workspace, out, sides, unit)

    def _read_on_device(self, ids: Tensor, unit: int, sides: int, out: Tensor) -> bool:
        """Units `[G, n]` into `out`, if the device can find all pages itself: in its pool, or in host memory that it
        reads. The host learns nothing, so it does not wait. Returns False, having done nothing, otherwise."""
        store, gpu = self._store, self._store.gpu
        if gpu is None or ids.device != gpu.data.device:
            return False
        layout, units = store.layout, store.layout.page_size // unit
        with store.still():
            near = self._slots[gpu.name].table()
            if near is not None:
                rows = gpu.rows(layout.sides * layout.num_heads * units).view(out.dtype)
                parts = parts_of(ids, near, layout.sides, units, last=sides)
                torch.index_select(rows, 0, parts.flatten(), out=out)
                store.counters.gpu_reads += -(-ids.shape[1] // units)
                self._has_read_itself = True
                return True
            if self._budget is None or self._fits_the_pool or store.links.host.is_held:
                return False
            far = self._slots[store.host.name].table()
            if far is None or not is_reached(store.host, ids.device):
                return False
            cache = self._row_cache(DeviceRows, unit, sides, self._budget)
            if cache is None:
                return False
            try:
                cache.read(ids, store.host, far, out)
            finally:
                store.host.in_flight.note(ids.device)
            self._has_read_itself = True
            return True

    @property
    def is_found_by_device(self) -> bool:
        """Whether the device can find all pages itself."""
        return self._near() is not None or self._is_far()

    def note_read(self) -> None:
        """The device was told to read by itself."""
        self._has_read_itself = True

    def step_pages(self, unit: int, most: int, *, waits: bool = False, values_alone: bool = False) -> StepPages | None:
        """The pages that attention on the device reads in steps that choose at most `most` units of each head. Good
        until pages move or are sealed.

        Args:
            waits: such as the host finds, which no move of pages makes wrong.
            values_alone: keys are not read.

        Returns None where the device has no room for what is chosen.
        """
        store, gpu, sides = self._store, self._store.gpu, 1 if values_alone else self._store.layout.sides
        assert gpu is not None
        if not waits and (slots := self._near()) is not None:
            return PoolPages(store, slots, unit)
        if gpu.num_free * self.page_size >= _ROOM * most * unit:  # others may have given their room back
            self._caches = {kind: cache for kind, cache in self._caches.items() if cache is not None}
        if not waits and self._is_far():
            rows, slots_of = self._row_cache(DeviceRows, unit, sides, most * unit), self._slots[store.host.name]
            if rows is not None:
                rows.make_room(len(slots_of.whole) * self.page_size // unit)
                return EntryPages(store, rows, slots_of.whole)
        cache = self._row_cache(RowCache, unit, sides, most * unit)
        if cache is not None:
            return HostEntries(cache, self._workspace, self._fetch)
        if (len(SpanPages.of(self._workspace)) - 1) * self.page_size >= most * unit:
            return SpanPages(store, self._workspace, self._fetch, unit, sides)
        return None

    def _near(self) -> np.ndarray | None:
        """The slots of all pages in the device pool, where they are brought if nothing has to leave it for that; None
        if they are not all there then."""
        store, pids = self._store, self._pages.pids
        assert store.gpu is not None
        with store.still():
            slots = store.slots_in(store.gpu, pids)
            missing = np.flatnonzero(slots < 0)
            has_room = len(missing) <= store.gpu.num_free
        if len(missing) and has_room:
            count = max(1, KEY_BLOCK // self.page_size)
            for first in range(0, len(missing), count):
                self.pages(missing[first : first + count])
            with store.still():
                slots = store.slots_in(store.gpu, pids)
        return None if (slots < 0).any() else slots

    def _is_far(self) -> bool:
        """Whether all pages lie in host memory that the device reads."""
        store, gpu = self._store, self._store.gpu
        assert gpu is not None
        with store.still():
            is_there = not store.links.host.is_held and self._slots[store.host.name].table() is not None
            return is_there and is_reached(store.host, gpu.data.device)

    def _gather(self, workspace: Workspace, ids: np.ndarray, unit: int, sides: int, *, promote: bool) -> Tensor:
        """`[sides, G, n * unit, D]` of units `[G, n]`."""
        groups, count = ids.shape
        out = workspace.stage(sides * groups * count, unit * self._store.layout.head_dim)
        self._fetch(np.repeat(np.arange(groups), count), ids.reshape(-1), unit, sides, out, promote=promote)
        return self._shaped(workspace, out, sides, unit)

    def _shaped(self, workspace: Workspace, out: Tensor, sides: int, unit: int) -> Tensor:
        layout = self._store.layout
        return workspace.widened(out).view(sides, layout.num_heads, -1, layout.head_dim)

    def _fetch(
        self, heads: np.ndarray, units: np.ndarray, unit: int, sides: int, out: Tensor, *, promote: bool = False
    ) -> None:
        """Units `[m]` of heads `[m]` into `out` `[sides * m, unit * D]`, side by side."""
        rows = self._rows_of(heads, units, unit, sides)
        try:
            self._store.gather(*rows, out, promote=promote)
        except CorruptPageError as error:
            self._recover(error.pages)
            self._store.gather(*rows, out, promote=promote)

    def fetch_ahead(
        self, heads: np.ndarray, units: np.ndarray, unit: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Fetch keys and values that nobody waits for, a buffer at a time. Yields heads and units `[m]` and
        `[S * m, unit * D]`, side by side, which is good until the next. Raises CorruptPageError."""
        width, sides = unit * self._store.layout.head_dim, self._store.layout.sides
        few = self._workspace.ahead.numel() // (sides * width)
        for start in range(0, len(units), few):
            some = slice(start, start + few)
            out = self._workspace.ahead[: sides * len(units[some]) * width].view(-1, width)
            rows = self._rows_of(heads[some], units[some], unit, sides)
            self._store.gather(*rows, out, promote=False, ahead=True)
            yield heads[some], units[some], out

    def _rows_of(
        self, heads: np.ndarray, units: np.ndarray, unit: int, sides: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The first arguments of `TieredStore.gather`: distinct pages, and for each row which page and which part."""
        layout, pids = self._store.layout, self._pages.pids
        parts_per_run = layout.page_size // unit
        wanted = units // parts_per_run
        place = np.zeros(len(pids), dtype=np.int64)
        place[wanted] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        runs = heads * layout.sides + np.arange(layout.sides - sides, layout.sides)[:, None]  # values come last
        parts_of = runs * parts_per_run + units % parts_per_run
        pages = np.broadcast_to(place[wanted], parts_of.shape)
        return pids[distinct], pages.reshape(-1), parts_of.reshape(-1), layout.sides * layout.num_heads * parts_per_run

    # Row caches

    @property
    def _fits_the_pool(self) -> bool:
        """Whether all pages of the sequence fit the device pool, so that they are moved there as they are read."""
        gpu = self._store.gpu
        return gpu is None or len(self._pages.pids) < gpu.num_slots // max(self._store.num_layers, 1)

    def row_caches(self) -> list[RowCache]:
        """Those that the host keeps."""
        return [cache for cache in self._kept() if isinstance(cache, RowCache)]

    def _kept(self) -> list[RowCache | DeviceRows]:
        return [cache for cache in self._caches.values() if cache is not None]

    def _row_cache(self, made: type[Cache], unit: int, sides: int, budget: int) -> Cache | None:
        """Where a step that reads `budget` tokens keeps their rows. None where the device pool has no room for them."""
        kind = unit, sides
        if self._store.gpu is None:
            return None
        needed = -(-budget // unit)
        if kind in self._caches:
            held = self._caches[kind]
            if held is None:
                return None
            if isinstance(held, made) and held.num_entries >= needed:
                return held
            held.close()
        rows = ReservedRows.reserve(self._store, self._pages.layer, unit, sides, _ROOM * needed)
        if rows is not None and rows.num_entries < needed:
            rows.close()
            rows = None
        cache = None if rows is None else made(rows)
        self._caches[kind] = cache
        return cache

    def count(self) -> None:
        """Add what the device has read by itself to the store's counters, and keep these pages from being the oldest.
        Waits for the device: for moments at which it is waited for anyhow."""
        for cache in self._kept():
            if isinstance(cache, DeviceRows):
                cache.count()
        if self._has_read_itself:
            self._store.touch(self._pages.pids)
            self._has_read_itself = False

    def truncate(self, num_tokens: int) -> None:
        """Forget rows from `num_tokens` on: others may take those positions."""
        for cache in self._kept():
            cache.truncate(num_tokens // cache.unit)

    def close(self) -> None:
        """Give the pool's room back."""
        for cache in self._kept():
            cache.close()
        self._caches = {}
