"""Room in the device pool for entries: a unit of one KV head, its keys and values (or its values alone) as rows."""

from __future__ import annotations

import numpy as np
import torch

from ...storage import TieredStore
from .pages import rows_of_units


class ReservedRows:
    """Entries of `unit` tokens for every KV head, in `slots` of the gpu pool.

    Args:
        sides: how many of a page's sides an entry holds, the last ones.
        slots: from `TieredStore.reserve`, given back by `close`.
    """

    def __init__(self, store: TieredStore, layer: int, unit: int, sides: int, slots: np.ndarray) -> None:
        assert store.gpu is not None
        layout = store.layout
        self.store, self.layer, self.unit, self.sides, self.slots = store, layer, unit, sides, slots
        self.groups = layout.num_heads
        self.parts = layout.sides * self.groups * layout.page_size // unit
        """Units of a page, of all heads and sides."""
        self.num_entries = len(slots) * self.parts // (sides * self.groups)
        """Of each head."""
        self.entry_bytes = sides * unit * layout.head_dim * layout.item_bytes
        self.data = store.gpu.rows(self.parts).view(getattr(torch, layout.dtype))
        """All of the pool as rows `[N, unit * D]`."""
        self.row_of = self._rows()
        """int64 `[sides, G * num_entries]`: where in `data` an entry's sides lie."""
        self.are_open = True
        """Nobody has given the slots back."""

    def _rows(self) -> np.ndarray:
        """Entries lie as the units of pages do that have as many sides, and so many more tokens: attention reads
        either."""
        units = self.parts // (self.sides * self.groups)
        entry = np.arange(self.num_entries)
        found = rows_of_units(
            self.slots[entry // units], entry % units, units=units, groups=self.groups, sides=self.sides,
            last=self.sides,
        )  # fmt: skip
        return found.reshape(self.sides, -1)

    @classmethod
    def reserve(cls, store: TieredStore, layer: int, unit: int, sides: int, entries: int) -> ReservedRows | None:
        """As close to `entries` of every head as the pool has room for; None where it has none."""
        per_page = store.layout.sides * store.layout.page_size // (sides * unit)
        slots = store.reserve(layer, -(-entries // per_page))
        return cls(store, layer, unit, sides, slots) if len(slots) else None

    def close(self) -> None:
        """Give the slots back. Nothing may be called afterwards."""
        self.are_open = False
        self.store.unreserve(self.layer, self.slots)
