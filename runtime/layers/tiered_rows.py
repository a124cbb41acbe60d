"""A tiered layer's reading, as rows of a compiled step's table.

Where all of its pages are in host memory, attention reads them where they lie, and nothing of Python comes between the
query and its result (`fill`). Otherwise the chosen units are fetched first (`attend`). Both compute the same, to the
bit: the same units, cut into the same parts.

Shapes  G KV heads, L page size, D head dim
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ...retrieval import Index
from ...retrieval.index import IndexOf
from ...retrieval.scoring import Scoring
from .attend_rows import KV_KINDS, SPAN, Attending, num_parts
from .page_reader import PageReader
from .pages import LayerPages
from .score_rows import fill_choice


class TieredRows:
    """The rows of one layer of one sequence."""

    def __init__(self, pages: LayerPages, reader: PageReader, index: Index) -> None:
        self._pages, self._reader, self._index, self._store = pages, reader, index, pages.store
        self.are_exact = type(index).attend is IndexOf.attend
        """Attention over what the index chose is exact; otherwise only the index itself can compute it."""
        layout = pages.layout
        self._dtype: torch.dtype = getattr(torch, layout.dtype)
        self._side = layout.page_size * layout.head_dim * self._dtype.itemsize
        """Bytes of one head's keys in a page."""
        self._places = np.empty(0, dtype=np.int64)
        self._ids: Tensor | None = None
        self._unit = self._num_read = 0

    def fill(self, rows: np.ndarray, at: Attending, state: object, budget: int) -> int | None:
        """As `LayerKV.fill`."""
        pages, size = self._pages, self._pages.layout.page_size
        if not self.are_exact:
            return None
        places = self._store.places(pages.pids)
        if places is None:
            return None
        self._places, self._unit, self._ids = places, size, None  # rows have its address
        rows[:] = 0
        count, row = len(places), rows[-1]
        if pages.sealed > budget:
            scoring = self._index.scoring(state, pages.sealed, budget)
            if scoring is None:
                return None
            self._ids, count, self._unit = self._choice(rows[:-1], at, scoring), scoring.count, scoring.unit
        parts = num_parts(count, self._unit) + num_parts(pages.tail_len, 1)
        at.row(row, unit=self._unit, page=size, parts=parts)
        at.read(row, count, places, 2 * self._side, self._side, KV_KINDS[self._dtype])
        if self._ids is not None:
            row[r.A_IDS] = self._ids.data_ptr()
        at.behind(row, pages.open_kv, pages.tail_len)
        self._num_read = count * self._unit
        return parts

    def _choice(self, rows: np.ndarray, at: Attending, scoring: Scoring) -> Tensor:
        ids = torch.empty((self._pages.layout.num_heads, scoring.count), dtype=torch.int32)
        fill_choice(rows, at, scoring, ids)
        return ids

    def end_step(self) -> int:
        """What `fill` filled in has been read. Returns how many tokens of sealed pages."""
        pids = self._pages.pids
        if self._ids is not None:
            is_read = np.zeros(len(pids), dtype=bool)
            is_read[self._ids.numpy() * self._unit // self._pages.layout.page_size] = True
            pids = pids[is_read]
        self._store.count_read(pids)
        return self._num_read

    def attend(
        self, rows: np.ndarray, at: Attending, state: object, budget: int, run: Callable[[np.ndarray], None]
    ) -> tuple[Tensor | None, int, int]:
        """As `LayerKV.attend`. Returns the unit ids `[G, n]` (None: nothing is sealed yet), tokens per unit, parts."""
        pages, size = self._pages, self._pages.layout.page_size
        tail, ids, unit = num_parts(pages.tail_len, 1), None, size
        if pages.sealed > budget:
            ids, unit = self._chosen(rows[:-1], at, state, budget, run)
            self._reader.begin_step(max(budget, ids.shape[1] * unit))
        elif pages.sealed:
            ids = torch.arange(pages.sealed // size).expand(pages.layout.num_heads, -1)
            self._reader.begin_step(None)
        whole = 0 if ids is None else num_parts(ids.shape[1], unit)
        row = rows[-1:]
        if ids is not None:
            self._read(row, at, ids, unit, whole + tail, run)
        at.row(row[0], unit=1, page=1, parts=whole + tail, first=whole)
        at.behind(row[0], pages.open_kv, pages.tail_len)
        run(row)
        return ids, unit, whole + tail

    def _chosen(
        self, rows: np.ndarray, at: Attending, state: object, budget: int, run: Callable[[np.ndarray], None]
    ) -> tuple[Tensor, int]:
        """The units to read, int64 `[G, n]`, and the tokens of one."""
        scoring = self._index.scoring(state, self._pages.sealed, budget)
        if scoring is None:
            query = at.q.view(self._pages.layout.num_heads, -1, self._pages.layout.head_dim) * at.scale
            ids, unit, _ = self._index.select(state, query, self._pages.sealed, budget)
            return ids, unit
        chosen = self._choice(rows, at, scoring)
        run(rows)
        return chosen.long(), scoring.unit

    def _read(
        self, row: np.ndarray, at: Attending, ids: Tensor, unit: int, parts: int, run: Callable[[np.ndarray], None]
    ) -> None:
        """Attend to units fetched for it, as many whole parts at a time as the reader can hold."""
        each = max(1, SPAN // unit)
        block = max(1, self._reader.max_tokens // (each * unit)) * each
        for begin in range(0, ids.shape[1], block):
            some = ids[:, begin : begin + block]
            keys, values = self._reader.keys_values(some, unit)
            groups, width, dim = keys.shape
            starts = np.arange(groups)[:, None] * keys.stride(0) + np.arange(some.shape[1]) * unit * dim
            places = starts * keys.element_size() + keys.data_ptr()
            at.row(row[0], unit=unit, page=unit, parts=parts, first=begin // each)
            at.read(row[0], some.shape[1], places, 0, values.data_ptr() - keys.data_ptr(), KV_KINDS[keys.dtype])
            row[0, r.A_OWN] = 1
            run(row)
