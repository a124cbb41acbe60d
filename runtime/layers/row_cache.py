"""Copies in the device pool of what one layer read lately, unit by unit and head by head.

Decode reads units of a few tokens, other ones for every KV head; a page holds all heads of many tokens. Where the
pages of a sequence do not fit the device pool, copying whole pages up would move and keep several times what is read.
So a layer reserves slots of the pool and keeps *entries* there: a unit of one KV head, its keys and values (or its
values alone) as rows of `unit * D` elements.

    read    entries of this step's selection; what lacks is fetched and takes the place of what was read least lately
    put     what may be wanted next, fetched ahead: it replaces nothing that the last step read

Invariants  (1) `entry_of[g, u] == e` exactly if `unit_of[g, e] == u`
            (2) an entry's rows are the bytes of its unit's page: what is read does not depend on what is cached
            (3) what a step reads stays until the next: there are at least as many entries as it asks for
After `put` the data may still be in flight. The first read that uses it, and any write, waits for its `Arrival`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...storage import TieredStore
from .reserved_rows import ReservedRows

_ABSENT = -1
_NEVER = np.iinfo(np.int32).min


class Fetch(Protocol):
    """Fills `out` `[sides * m, unit * D]`, side by side, with units int64 `[m]` of heads int64 `[m]`."""

    def __call__(self, heads: np.ndarray, units: np.ndarray, unit: int, sides: int, out: Tensor) -> None: ...


class RowCache:
    """Copies in `rows`, by a host that knows what lies where."""

    def __init__(self, rows: ReservedRows) -> None:
        self.store, self._reserved = rows.store, rows
        self.unit, self.sides, self.groups, self.num_entries = rows.unit, rows.sides, rows.groups, rows.num_entries
        self.entry_bytes, self.slots = rows.entry_bytes, rows.slots
        self._clock = 0
        self._arrival: Arrival | None = None
        self._clear()

    def _clear(self) -> None:
        shape = (self.groups, self.num_entries)
        self._unit_of = np.full(shape, _ABSENT, dtype=np.int64)
        self._entry_of = np.full((self.groups, 1024), _ABSENT, dtype=np.int32)
        self._last_use = np.full(shape, _NEVER, dtype=np.int32)
        self._ahead = np.zeros(shape, dtype=bool)

    @property
    def is_open(self) -> bool:
        """Nobody has closed it."""
        return self._reserved.are_open

    def begin_step(self) -> None:
        """A step begins: entries that earlier steps read may be replaced from now on."""
        self._clock += 2

    def read(self, ids: np.ndarray, out: Tensor, fetch: Fetch) -> None:
        """The units `ids` `[G, n]` into `out` `[sides * G * n, unit * D]`: side by side, head by head, in the order
        of `ids`. The reads of a step ask for at most `num_entries` units of a head."""
        rows, data = self._reserved.row_of[:, self._flat(self.find(ids, out, fetch))].reshape(-1), self._reserved.data
        torch.index_select(data, 0, torch.from_numpy(rows).to(data.device), out=out)

    def find(self, ids: np.ndarray, staging: Tensor, fetch: Fetch) -> np.ndarray:
        """The entries `[G, n]` that hold the units `ids` from now on. What comes passes through `staging`, which has
        room for all of them."""
        entries = self._find(ids)
        lacking = entries < 0
        found = (self._flat(entries))[~lacking.reshape(-1)]
        self._last_use.reshape(-1)[found] = self._clock
        self._note_useful(found)
        self.store.counters.add(row_hits=len(found), row_misses=lacking.size - len(found))
        if lacking.any():
            self._await_arrival()  # what is still coming may be meant for where this goes
            heads, where = np.nonzero(lacking)
            units = ids[heads, where]
            staged = staging[: self.sides * len(units)]
            fetch(heads, units, self.unit, self.sides, staged)
            entries[lacking] = self._take(heads, units, staged, self._clock)
        return entries

    def lacking(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `ids` `[G, n]` are not here, as heads and units `[m]`; of each head at most as many as could come
        without replacing what the last step read, or others of `ids`: those stay until the next step."""
        entries = self._find(ids)
        lacking = entries < 0
        held = self._flat(entries)[~lacking.reshape(-1)]
        last_use = self._last_use.reshape(-1)
        last_use[held] = np.maximum(last_use[held], self._clock - 1)
        room = (self._last_use < self._clock - 1).sum(1)
        lacking &= lacking.cumsum(1) <= room[:, None]
        heads, where = np.nonzero(lacking)
        return heads, ids[heads, where]

    def put(self, heads: np.ndarray, units: np.ndarray, staged: Tensor) -> None:
        """Keep `staged` `[sides * m, unit * D]`, sent ahead: of units that were just `lacking`."""
        entries = self._take(heads, units, staged, self._clock - 1)
        self._ahead[heads, entries] = True
        self._arrival = Arrival(self.store, staged.device)
        self.store.counters.add(prefetched_bytes=staged.nbytes)

    def truncate(self, num_units: int) -> None:
        """Forget units from `num_units` on; 0 forgets everything."""
        heads, entries = np.nonzero(self._unit_of >= num_units)
        self._drop(heads, entries)

    def close(self) -> None:
        """Give the slots back. Nothing may be called afterwards."""
        self._await_arrival()
        self.truncate(0)
        self._reserved.close()

    def check_integrity(self) -> None:
        """Re-add the invariants; raises AssertionError."""
        heads, entries = np.nonzero(self._unit_of >= 0)
        units = self._unit_of[heads, entries]
        assert (self._entry_of[heads, units] == entries).all(), "an entry's unit does not lead back to it"
        assert (self._entry_of >= 0).sum() == len(entries), "a unit leads to an entry that does not hold it"
        assert not self._ahead[self._unit_of < 0].any(), "an empty entry came ahead"

    def _find(self, ids: np.ndarray) -> np.ndarray:
        """Entries of `ids` `[G, n]`, `_ABSENT` where there is none."""
        while ids.size and int(ids.max()) >= self._entry_of.shape[1]:
            self._entry_of = np.concatenate([self._entry_of, np.full_like(self._entry_of, _ABSENT)], 1)
        width = self._entry_of.shape[1]
        return self._entry_of.reshape(-1)[ids + (np.arange(self.groups) * width)[:, None]]

    def _flat(self, entries: np.ndarray) -> np.ndarray:
        """Places of entries `[G, n]` in arrays `[G, num_entries]`, flattened."""
        return (entries + (np.arange(self.groups) * self.num_entries)[:, None]).reshape(-1)

    def _take(self, heads: np.ndarray, units: np.ndarray, staged: Tensor, now: int) -> np.ndarray:
        """Put units where those used least lately are; `heads` ascend. Returns their entries `[m]`."""
        counts = np.bincount(heads, minlength=self.groups)
        most = int(counts.max())
        oldest = np.argpartition(self._last_use, most - 1, axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(self._last_use, oldest, 1), axis=1)
        entries = np.take_along_axis(oldest, order, 1)[np.arange(most) < counts[:, None]]
        assert (self._last_use[heads, entries] < self._clock).all(), "a step would lose what it reads"
        self._drop(heads, entries)
        self._unit_of[heads, entries] = units
        self._entry_of[heads, units] = entries
        self._last_use[heads, entries] = now
        rows, data = self._reserved.row_of[:, heads * self.num_entries + entries].reshape(-1), self._reserved.data
        data.index_copy_(0, torch.from_numpy(rows).to(data.device), staged)
        return entries

    def _drop(self, heads: np.ndarray, entries: np.ndarray) -> None:
        units = self._unit_of[heads, entries]
        held = units >= 0
        self._entry_of[heads[held], units[held]] = _ABSENT
        self._unit_of[heads, entries] = _ABSENT
        self._last_use[heads, entries] = _NEVER
        came = self._ahead[heads, entries]
        if came.any():
            self._ahead[heads, entries] = False
            self.store.counters.add(wasted_prefetched_bytes=int(came.sum()) * self.entry_bytes)

    def _note_useful(self, flat: np.ndarray) -> None:
        came = self._ahead.reshape(-1)[flat]
        if not came.any():
            return
        self._ahead.reshape(-1)[flat] = False
        self.store.counters.add(useful_prefetched_bytes=int(came.sum()) * self.entry_bytes)
        self._await_arrival()

    def _await_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.wait()
            self._arrival = None


class Arrival:
    """The moment at which everything sent ahead so far has arrived. `wait` makes the step wait for it; on CUDA it makes
    the device wait."""

    def __init__(self, store: TieredStore, device: torch.device) -> None:
        self._store, self._due = store, store.links.host.due
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> None:
        self._store.counters.add(stall_s=self._store.links.host.wait(self._due))
        if self._event is not None:
            self._event.wait()
