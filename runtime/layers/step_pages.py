"""The pages that attention on the device reads in a step of one layer of one sequence, whatever tier its own lie in.

A step chooses units of the sequence's pages, by ids that no host need know. `kernels.paged_attention` reads units of
pages that lie in slots of a pool. What leads from one to the other differs with where the pages lie:

    PoolPages     all in the device pool: they are read where they lie
    EntryPages    all in host memory that the device reads: units are copied into entries of a row cache, which lie as
                  pages' units do, by tables on the device (`device_rows`)
    HostEntries   elsewhere: the same by a host that learns the ids (`row_cache`), and may have guessed them
    SpanPages     as there, where the pool has no room for entries: copied into the span buffer, idle in decode

Which of them it is changes no bit: the same numbers are read in the same order.

Shapes  G KV heads, n units of a choice, S sides, L page size, D head dim
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...storage import TieredStore
from .device_rows import DeviceRows
from .pages import rows_of_units
from .row_cache import Fetch, RowCache
from .workspace import KEY_BLOCK, Workspace


class StepPages(ABC):
    """Pages in a pool, and the way to them from the units that are chosen.

    Args:
        slots: of the pages that units are of, int64 `[P]`.
        unit: tokens per unit.
        sides: that these pages have; with fewer than the layout's they have so many more tokens.
        pool: the pages `[.., G, S, L, D]` that these are slots of, the last of which is for a copy of the open one;
            None: those of the device pool.
    """

    waits: ClassVar[bool]
    """Whether the host must learn what was chosen."""

    def __init__(self, slots: np.ndarray, unit: int, sides: int, pool: Tensor | None = None) -> None:
        self.slots, self.unit, self.sides, self.pool = slots, unit, sides, pool

    @property
    def are_there(self) -> bool:
        """Whether what holds them is still the layer's: others may have its room otherwise."""
        return True

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """All tensors that `find` goes by, besides its arguments: it can be repeated as recorded while they lie where
        they lie."""
        return ()

    @abstractmethod
    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        """Units `[G, n]` of `slots` that hold the units `ids` int64 `[G, n]` of the sequence, as far as these count.

        Args:
            counts: int64 `[G]`, the first ids of each head that count. count: the same, where it may be looked at.
        """

    def note(self, count: int) -> None:
        """A step has been told to find `count` units of each head: count what nobody has counted yet."""
        return


def is_same(mine: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Whether these are the same memory."""
    return len(mine) == len(others) and all(
        a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(mine, others, strict=True)
    )


class PoolPages(StepPages):
    """The sequence's own pages, in `slots` of the device pool."""

    waits = False

    def __init__(self, store: TieredStore, slots: np.ndarray, unit: int) -> None:
        super().__init__(slots, unit, store.layout.sides)
        self._store, self._units = store, store.layout.page_size // unit

    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        return ids

    def note(self, count: int) -> None:
        self._store.counters.gpu_reads += -(-count // self._units)


class EntryPages(StepPages):
    """Entries that the device finds, and fetches from pages in host memory. `table` int32 `[pages]`, their slots there,
    which others keep up."""

    waits = False

    def __init__(self, store: TieredStore, rows: DeviceRows, table: Tensor) -> None:
        super().__init__(rows.slots, rows.unit, rows.sides)
        self._store, self._rows, self._table = store, rows, table
        self._reads = *rows.tables, table  # as they lie now: rows may make room

    @property
    def are_there(self) -> bool:
        return self._rows.are_open

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return self._reads

    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        self._rows.begin_step()
        return self._rows.find(ids, self._store.host, self._table, counts)

    def note(self, count: int) -> None:
        self._rows.has_read = True


class HostEntries(StepPages):
    """Entries that the host finds, and fetches from wherever pages lie."""

    waits = True

    def __init__(self, cache: RowCache, workspace: Workspace, fetch: Fetch) -> None:
        super().__init__(cache.slots, cache.unit, cache.sides)
        self._cache, self._workspace, self._fetch = cache, workspace, fetch

    @property
    def are_there(self) -> bool:
        return self._cache.is_open

    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        cache, wanted = self._cache, ids[:, :count].cpu().numpy()
        cache.begin_step()
        entries, block = np.zeros(ids.shape, dtype=np.int64), max(1, KEY_BLOCK // cache.unit)
        width = cache.entry_bytes // cache.sides // self._workspace.dtype.itemsize
        for first in range(0, count, block):
            some = slice(first, min(first + block, count))
            staging = self._workspace.stage(cache.sides * wanted[:, some].size, width)
            entries[:, some] = cache.find(wanted[:, some], staging, self._fetch)
        return torch.from_numpy(entries).to(ids.device)


class SpanPages(StepPages):
    """Units in the span buffer, fetched anew in each step, all sides of them or the last `sides`; the last page there
    is for a copy of the open one."""

    waits = True

    def __init__(self, store: TieredStore, workspace: Workspace, fetch: Fetch, unit: int, sides: int) -> None:
        pool = self.of(workspace)
        super().__init__(np.arange(len(pool) - 1), unit, store.layout.sides, pool)
        self._layout, self._workspace, self._fetch, self._fetched = store.layout, workspace, fetch, sides
        self._rows = pool.view(-1, unit * store.layout.head_dim)

    @staticmethod
    def of(workspace: Workspace) -> Tensor:
        """The span buffer as pages `[P, G, S, L, D]`."""
        sides, groups, _, dim = workspace.span.shape
        page = sides * groups * workspace.page_size * dim
        whole = workspace.span.view(-1)
        return whole[: len(whole) // page * page].view(-1, groups, sides, workspace.page_size, dim)

    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        sides, groups, unit, fetched = self._layout.sides, self._layout.num_heads, self.unit, self._fetched
        units, rows, wanted = self._layout.page_size // unit, self._rows, ids[:, :count].cpu().numpy()
        block = max(1, KEY_BLOCK // unit)
        for first in range(0, count, block):
            entry = np.arange(first, min(first + block, count))
            staging = self._workspace.stage(fetched * groups * len(entry), rows.shape[1])
            heads = np.repeat(np.arange(groups), len(entry))
            self._fetch(heads, wanted[:, entry].reshape(-1), unit, fetched, staging)
            places = rows_of_units(
                entry // units, entry % units, units=units, groups=groups, sides=sides, last=fetched
            )  # fmt: skip
            rows.index_copy_(0, torch.from_numpy(places.reshape(-1)).to(rows.device), staging)
        found = torch.arange(ids.shape[1], device=ids.device)
        return found.where(found < count, 0).repeat(len(ids), 1)
