"""Fetching the KV of chosen tokens of one layer: from unit ids to rows of pages in the store.

A page is laid out `[G, 2, L, D]`, so one head's keys of one unit are `unit * D` contiguous elements:
one *part* of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ...storage import CorruptPageError, TieredStore
from .row_cache import RowCache
from .workspace import KEY_BLOCK, Workspace

Recover = Callable[[list[int]], None]
"""Recompute damaged pages, given their page ids."""
KEYS_VALUES, VALUES = np.array([0, 1]), np.array([1])
"""Sides of a page."""


class PageReader:
    """A `retrieval.reading.Reader` over the sealed pages `pids` of one layer.

    Args:
        promote: copy the pages read into the device pool while there is room; otherwise only the asked
            parts cross to wherever `workspace` stages them.
        rows: where parts of pages are kept in the device pool (units of so many tokens; keys and values, or
            values alone), if anywhere.
    """

    max_tokens = KEY_BLOCK

    def __init__(
        self,
        store: TieredStore,
        workspace: Workspace,
        pids: np.ndarray,
        recover: Recover,
        *,
        promote: bool = True,
        rows: Callable[[int, int], RowCache | None] = lambda unit, sides: None,
    ) -> None:
        self.store, self.workspace, self.pids, self.recover = store, workspace, pids, recover
        self.promote, self.rows = promote, rows

    def keys_values(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        kv = self._gather(ids.cpu().numpy(), unit, KEYS_VALUES, self.promote)
        return kv[0], kv[1]

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self._gather(ids.cpu().numpy(), unit, VALUES, promote=False)[0]

    def pages(self, pages: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values of whole pages, the same ones for every head."""
        ids = torch.from_numpy(np.broadcast_to(pages, (self.store.layout.num_heads, len(pages))).copy())
        return self.keys_values(ids, self.store.layout.page_size)

    def _gather(self, ids: np.ndarray, unit: int, sides: np.ndarray, promote: bool) -> Tensor:
        """`[len(sides), G, n*unit, D]` of units `[G, n]`, in the workspace until the next gather."""
        layout = self.store.layout
        groups, count = ids.shape
        out = self.workspace.stage(len(sides) * groups * count, unit * layout.head_dim)
        cache = self.rows(unit, len(sides))
        if cache is None:
            self._fetch(np.repeat(np.arange(groups), count), ids.reshape(-1), unit, sides, out, promote)
        else:
            cache.read(ids, out, lambda heads, units, out: self._fetch(heads, units, unit, sides, out, promote=False))
        return self.workspace.widened(out).view(len(sides), groups, count * unit, layout.head_dim)

    def _fetch(
        self, heads: np.ndarray, units: np.ndarray, unit: int, sides: np.ndarray, out: Tensor, promote: bool
    ) -> None:
        """Units `[m]` of heads `[m]` into `out` `[len(sides) * m, unit * D]`, side by side."""
        rows = self._rows_of(heads, units, unit, sides)
        try:
            self.store.gather(*rows, out, promote=promote)
        except CorruptPageError as error:
            self.recover(error.pages)
            self.store.gather(*rows, out, promote=promote)

    def fetch_ahead(
        self, heads: np.ndarray, units: np.ndarray, unit: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Keys and values for whoever does not wait, a buffer at a time: heads, units, and what `out` would be, which
        is good until the next. Raises CorruptPageError."""
        width = unit * self.store.layout.head_dim
        few = self.workspace.ahead.numel() // (2 * width)
        for start in range(0, len(units), few):
            some = slice(start, start + few)
            out = self.workspace.ahead[: 2 * len(units[some]) * width].view(-1, width)
            rows = self._rows_of(heads[some], units[some], unit, KEYS_VALUES)
            self.store.gather(*rows, out, promote=False, ahead=True)
            yield heads[some], units[some], out

    def _rows_of(
        self, heads: np.ndarray, units: np.ndarray, unit: int, sides: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """What `TieredStore.gather` wants to know: distinct pages, and for each row which of them and which part."""
        layout = self.store.layout
        parts_per_run = layout.page_size // unit
        wanted = units // parts_per_run
        place = np.zeros(len(self.pids), dtype=np.int64)
        place[wanted] = 1
        distinct = np.flatnonzero(place)
        place[distinct] = np.arange(len(distinct))
        runs = heads * 2 + sides[:, None]
        parts_of = runs * parts_per_run + units % parts_per_run
        pages = np.broadcast_to(place[wanted], parts_of.shape)
        return self.pids[distinct], pages.reshape(-1), parts_of.reshape(-1), 2 * layout.num_heads * parts_per_run
