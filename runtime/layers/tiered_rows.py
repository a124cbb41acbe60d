"""A tiered layer's reading, as rows of a compiled step's table.

Where all of its pages are in host memory, attention reads them where they lie, and nothing of Python comes between the
query and its result (`fill`). Otherwise the chosen units are fetched first (`attend`). Both compute the same, to the
bit: the same units, cut into the same parts.

Shapes  G KV heads, L page size, D head dim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ...retrieval import Index
from ...retrieval.index import IndexOf
from ...retrieval.scoring import Counts
from .attend_rows import KV_KINDS, SPAN, Attending, num_parts
from .page_reader import PageReader
from .pages import LayerPages
from .score_rows import choose, fill_choice


@dataclass(slots=True)
class _Filled:
    """Rows as they were filled in, all but the open page's length. They hold until a page is sealed or the sequence is
    cut: the index's state changes then only, and the array of page ids is then another one."""

    at: Attending
    room: int
    """The version of the room that rows have addresses in."""
    pids: np.ndarray
    open_kv: Tensor
    state: object
    budget: int
    rows: np.ndarray
    places: np.ndarray
    """Of the pages, written anew for each step."""
    ids: Tensor | None
    """The chosen units, int32; None: all are read."""
    count: int
    """Units per head."""
    unit: int
    """Tokens of one."""
    counts: Callable[[int], Counts] | None
    """How many are chosen for a budget; None: all are read."""

    @property
    def whole(self) -> int:
        """Parts that the units are read in."""
        return num_parts(self.count, self.unit)


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
        self._filled: _Filled | None = None

    def fill(self, rows: np.ndarray, at: Attending, state: object, budget: int) -> int | None:
        """As `LayerKV.fill`."""
        pages = self._pages
        if not self.are_exact:
            return None
        filled = self._filled
        if filled is None or not self._holds(filled, at, state, budget):
            filled = self._filled = self._anew(len(rows), at, state, budget)
        if filled is None or not self._store.places(pages.pids, filled.places):
            return None
        rows[:] = filled.rows
        return at.all_of(rows[-1], filled.whole, pages.tail_len)

    def _holds(self, filled: _Filled, at: Attending, state: object, budget: int) -> bool:
        """Whether the rows hold for this step, too. Where only the budget is another one, they do from now on."""
        pages, is_chosen = self._pages, self._pages.sealed > budget
        if not (filled.at is at and filled.room == at.room.version and filled.pids is pages.pids):
            return False
        if not (filled.open_kv is pages.open_kv and filled.state is state and is_chosen == (filled.ids is not None)):
            return False
        if filled.ids is None or filled.counts is None or filled.budget == budget:
            return True
        counts = filled.counts(budget)
        if pages.layout.num_heads * counts.units > filled.ids.numel():
            return False
        filled.budget, filled.count = budget, counts.units
        filled.rows[-1, r.A_COUNT] = counts.units
        choose(filled.rows[-2], counts)
        return True

    def _anew(self, count: int, at: Attending, state: object, budget: int) -> _Filled | None:
        """Rows for this step and those after it; None where only the index itself can choose."""
        pages, size = self._pages, self._pages.layout.page_size
        rows, places = np.zeros((count, r.WIDTH), dtype=np.int64), np.empty(len(pages.pids), dtype=np.int64)
        row, ids, units, unit, counts = rows[-1], None, len(places), size, None
        if pages.sealed > budget:
            scoring = self._index.scoring(state, pages.sealed)
            if scoring is None:
                return None
            counts = scoring.counts
            units, unit = counts(budget).units, scoring.unit
            ids = torch.empty(pages.layout.num_heads * units, dtype=torch.int32)
            fill_choice(rows[:-1], at, scoring, counts(budget), ids)
        at.row(row, unit=unit, page=size)
        at.read(row, units, places, 2 * self._side, self._side, KV_KINDS[self._dtype])
        at.behind(row, pages.open_kv, 0)
        if ids is not None:
            row[r.A_IDS] = ids.data_ptr()
        return _Filled(
            at, at.room.version, pages.pids, pages.open_kv, state, budget, rows, places, ids, units, unit, counts
        )

    @property
    def num_read(self) -> int:
        """Tokens of sealed pages that the rows of the last step read."""
        return 0 if self._filled is None else self._filled.count * self._filled.unit

    def end_step(self) -> np.ndarray:
        """What `fill` filled in has been read. Returns the ids of the sealed pages read."""
        filled = self._filled
        assert filled is not None
        if filled.ids is None:
            return filled.pids
        chosen = filled.ids.numpy()[: self._pages.layout.num_heads * filled.count]
        is_read = np.zeros(len(filled.pids), dtype=bool)
        is_read[chosen * filled.unit // self._pages.layout.page_size] = True
        return filled.pids[is_read]

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
        scoring = self._index.scoring(state, self._pages.sealed)
        if scoring is None:
            query = at.q.view(self._pages.layout.num_heads, -1, self._pages.layout.head_dim) * at.scale
            ids, unit, _ = self._index.select(state, query, self._pages.sealed, budget)
            return ids, unit
        counts = scoring.counts(budget)
        chosen = torch.empty((self._pages.layout.num_heads, counts.units), dtype=torch.int32)
        fill_choice(rows, at, scoring, counts, chosen)
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
            groups, _, dim = keys.shape
            starts = np.arange(groups)[:, None] * keys.stride(0) + np.arange(some.shape[1]) * unit * dim
            places = starts * keys.element_size() + keys.data_ptr()
            at.row(row[0], unit=unit, page=unit, parts=parts, first=begin // each)
            at.read(row[0], some.shape[1], places, 0, values.data_ptr() - keys.data_ptr(), KV_KINDS[keys.dtype])
            row[0, r.A_OWN] = 1
            run(row)
