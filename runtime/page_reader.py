"""Fetching the KV of chosen tokens of one layer: from unit ids to rows of pages in the store.

A page is laid out `[G, 2, L, D]`, so one head's keys of one unit are `unit * D` contiguous elements:
one *part* of the page.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..storage import CorruptPageError, TieredStore
from .workspace import KEY_BLOCK, Workspace

Recover = Callable[[list[int]], None]
"""Recompute damaged pages, given their page ids."""
_KEYS, _VALUES = 0, 1


class PageReader:
    """A `retrieval.reading.Reader` over the sealed pages `pids` of one layer.

    Args:
        promote: copy the pages read into the device pool while there is room; otherwise only the asked
            parts cross to wherever `workspace` stages them.
    """

    max_tokens = KEY_BLOCK

    def __init__(
        self, store: TieredStore, workspace: Workspace, pids: np.ndarray, recover: Recover, *, promote: bool = True
    ) -> None:
        self.store, self.workspace, self.pids, self.recover, self.promote = store, workspace, pids, recover, promote

    def keys_values(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        kv = self._gather(ids.cpu().numpy(), unit, np.array([_KEYS, _VALUES]), self.promote)
        return kv[0], kv[1]

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self._gather(ids.cpu().numpy(), unit, np.array([_VALUES]), promote=False)[0]

    def _gather(self, ids: np.ndarray, unit: int, sides: np.ndarray, promote: bool) -> Tensor:
        """`[len(sides), G, n*unit, D]` of units `[G, n]`, in the workspace until the next gather."""
        layout = self.store.layout
        groups, count = ids.shape
        parts_per_run = layout.page_size // unit
        wanted = ids // parts_per_run
        place = np.zeros(len(self.pids), dtype=np.int64)
        place[wanted] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        pages = np.broadcast_to(place[wanted], (len(sides), groups, count)).reshape(-1)
        runs = np.arange(groups).reshape(1, -1, 1) * 2 + sides.reshape(-1, 1, 1)
        parts = (runs * parts_per_run + (ids % parts_per_run)[None]).reshape(-1)
        out = self.workspace.stage(len(sides) * groups * count, unit * layout.head_dim)
        self._read(self.pids[distinct], pages, parts, 2 * groups * parts_per_run, out, promote)
        return self.workspace.widened(out).view(len(sides), groups, count * unit, layout.head_dim)

    def _read(
        self, pids: np.ndarray, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: Tensor, promote: bool
    ) -> None:
        try:
            self.store.gather(pids, pages, parts_of, parts, out, promote=promote)
        except CorruptPageError as error:
            self.recover(error.pages)
            self.store.gather(pids, pages, parts_of, parts, out, promote=promote)

    def pages(self, pages: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values of whole pages, the same ones for every head."""
        ids = torch.from_numpy(np.broadcast_to(pages, (self.store.layout.num_heads, len(pages))).copy())
        return self.keys_values(ids, self.store.layout.page_size)
