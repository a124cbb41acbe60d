"""Where the pages of one layer of one sequence lie in a tier, for kernels that look them up themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...storage import Arena
from ...storage.transfer.lane import for_device
from .pages import LayerPages

_ROOM = 64
"""The least room for pages in a table, which grows with the text."""


class PageSlots:
    """The slots of `pages` in `arena` as a tensor on `device`, written again only when pages have come or gone."""

    def __init__(self, pages: LayerPages, arena: Arena, device: torch.device) -> None:
        self._pages, self._arena, self._device = pages, arena, device
        with torch.inference_mode(False):  # who writes there later need not be in that mode
            self.whole = torch.zeros(_ROOM, dtype=torch.int32, device=device)
        """The table with the room that it has to grow; it lies in another place once that was too little."""
        self._table: Tensor | None = None
        self._slots = np.empty(0, dtype=np.int64)
        self._pids: np.ndarray | None = None
        self._departures = 0

    def table(self) -> Tensor | None:
        """int32 `[pages]`, good while the store is `still`; None unless all of them lie there."""
        pids, departures = self._pages.pids, self._arena.departures
        if len(pids) > self._arena.num_slots:
            return None
        if self._table is None or self._pids is not pids or self._departures != departures:
            self._send(self._pages.store.slots_in(self._arena, pids))
            self._pids, self._departures = pids, departures
        return self._table

    def _send(self, slots: np.ndarray) -> None:
        """Other pages may have left, so most often these are where they were. Nobody waits for what is sent."""
        if (slots < 0).any():
            self._table = None
        elif self._table is None or not np.array_equal(slots, self._slots):
            made = for_device(slots.astype(np.int32), self._device)
            if len(slots) > len(self.whole):
                with torch.inference_mode(False):
                    self.whole = torch.zeros(len(slots) + len(slots) // 8, dtype=torch.int32, device=self._device)
            self._table, self._slots = self.whole[: len(slots)].copy_(made, non_blocking=True), slots
