"""A tiered layer's reading, as rows of a compiled step's table.

Where all of its pages are in host memory, attention reads them where they lie, and nothing of Python comes between the
query and its result (`standing`). Otherwise the chosen units are fetched first (`attend`). Both compute the same, to
the bit: the same units, cut into the same parts.

Shapes  G KV heads, L page size, D head dim
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ...retrieval.index import Index, IndexOf, Selection
from ...retrieval.scoring import Counts
from .attend_rows import KV_KINDS, SPAN, Attending, num_parts
from .page_reader import PageReader
from .pages import LayerPages
from .score_rows import fill_choice
from .standing import NUM_ROWS, Standing

_KEPT = 64
"""The most budgets that are known from earlier pages: those of a share of the context do not come again."""


class TieredRows:
    """The rows of one layer of one sequence."""

    def __init__(self, pages: LayerPages, reader: PageReader, index: Index) -> None:
        self._pages, self._reader, self._index = pages, reader, index
        self.are_exact = type(index).attend is IndexOf.attend
        """Attention over what the index chose is exact; otherwise only the index itself can compute it."""
        layout = pages.layout
        self._dtype: torch.dtype = getattr(torch, layout.dtype)
        self._side = layout.page_size * layout.head_dim * self._dtype.itemsize
        """Bytes of one head's keys in a page."""
        self._standing: Standing | None = None
        self._made_of: tuple[object, object, int] = (None, None, 0)
        """What `_standing` was made of, besides pages: what attends, the index's state, the version of the room that
        rows have addresses in."""
        self._counts: dict[int, Counts] = {}
        """How many units the index chooses for a budget: most budgets come again with every page."""

    def standing(self, at: Attending, state: object, budget: int) -> Standing | None:
        """What is read, as `LayerKV.begin_step` gives it. Rows hold until a page is sealed or the sequence is cut: the
        index's state changes then only, and the array of page ids is then another one."""
        standing, pages, (made_at, made_of, room) = self._standing, self._pages, self._made_of
        is_chosen = pages.sealed > budget
        if (
            standing is None or standing.pids is not pages.pids or standing.is_chosen != is_chosen
            or made_at is not at or made_of is not state or room != at.room.version
        ):  # fmt: skip
            return self._anew(at, state, budget)
        if is_chosen:
            counts = self._counts.get(budget)
            if counts is None or counts.units > standing.most:
                return self._anew(at, state, budget)
            standing.counts = counts
        return standing

    def _anew(self, at: Attending, state: object, budget: int) -> Standing | None:
        """Rows for this step and those after it; None where only the index itself can choose."""
        pages, size, self._standing = self._pages, self._pages.layout.page_size, None
        if not self.are_exact:
            return None
        rows, counts, unit = np.zeros((NUM_ROWS, r.WIDTH), dtype=np.int64), Counts(len(pages.pids), 0, 0), size
        is_chosen = pages.sealed > budget
        if is_chosen:
            scoring = self._index.scoring(state, pages.sealed)
            if scoring is None:
                return None
            if len(self._counts) > _KEPT:
                self._counts.clear()
            for some in range(budget, budget - size, -1):  # as the open page fills
                if some not in self._counts:
                    self._counts[some] = scoring.counts(some)
            counts, unit = self._counts[budget], scoring.unit
            fill_choice(rows[:-1], at, scoring, counts)
        at.row(rows[-1], unit=unit, page=size)
        at.read(rows[-1], 0, 0, 2 * self._side, self._side, KV_KINDS[self._dtype])
        self._made_of = at, state, at.room.version
        self._standing = Standing(rows, size, pages.pids, unit, counts, counts.units, is_chosen)
        return self._standing

    def attend(
        self, rows: np.ndarray, at: Attending, state: object, budget: int, run: Callable[[np.ndarray], None],
        choose: Callable[[Tensor, int], Selection],
    ) -> tuple[Tensor | None, int, int]:  # fmt: skip
        """As `LayerKV.attend`. Returns the unit ids `[G, n]` (None: nothing is sealed yet), tokens per unit, parts.

        Args:
            choose: of a query `[G, R, D]` (fp32, scaled) and the budget, where only the index can.
        """
        pages, size = self._pages, self._pages.layout.page_size
        tail, ids, unit = num_parts(pages.tail_len, 1), None, size
        if pages.sealed > budget:
            ids, unit = self._chosen(rows[:-1], at, state, budget, run, choose)
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
        self, rows: np.ndarray, at: Attending, state: object, budget: int, run: Callable[[np.ndarray], None],
        choose: Callable[[Tensor, int], Selection],
    ) -> tuple[Tensor, int]:  # fmt: skip
        """The units to read, int64 `[G, n]`, and the tokens of one."""
        scoring = self._index.scoring(state, self._pages.sealed)
        if scoring is None:
            query = at.q.view(self._pages.layout.num_heads, -1, self._pages.layout.head_dim) * at.scale
            ids, unit, _ = choose(query, budget)
            return ids, unit
        counts = scoring.counts(budget)
        chosen = torch.empty((self._pages.layout.num_heads, counts.units), dtype=torch.int32)
        fill_choice(rows, at, scoring, counts)
        rows[-1, r.C_IDS] = chosen.data_ptr()
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
            at.read(
                row[0], some.shape[1], places.ctypes.data, 0, values.data_ptr() - keys.data_ptr(), KV_KINDS[keys.dtype]
            )
            row[0, r.A_OWN] = 1
            run(row)
