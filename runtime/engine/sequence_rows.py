"""The rows of a compiled step for all layers of one sequence, which stay from step to step.

Layers say what stays of theirs (`layers.standing`). Here it stands together, so that a step changes what it must
change, the newest token's place and some counts, for all layers at once:

    run      ... | token | token | new      a layer's newest tokens; the last `seen` of them are read
    pages    addresses, read again only where a page has left host memory
    ids      chosen units, written by the step

Shapes  N layers, P pages of all of them, G KV heads
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...kernels.compiled import record as r
from ...retrieval.scoring import Counts
from ...storage import TieredStore
from ..layers.attend_rows import SPAN, Attending
from ..layers.base import LayerKV
from ..layers.standing import Run, RunNumbers, Standing

_PLACE = [RunNumbers._fields.index(name) for name in ("head_pitch", "v_after", "kind")]
_RUN = [r.A_TAIL_PITCH, r.A_TAIL_V_AFTER, r.A_TAIL_KIND]


class SequenceRows:
    """What one sequence's step reads and writes, in the table of whoever takes it."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._standing: list[Standing] = []
        self._counts: list[Counts] = []
        self._alike: dict[tuple[int, ...], list[int]] = {}
        """Layers that choose as many units, of pages with as many; by these two numbers."""
        self._departures = -1
        """Of the store, when `_places` was written; -1: it is not."""

    def begin_step(self, layers: Sequence[LayerKV]) -> np.ndarray:
        """Count a token into every layer. Returns where its k and v go, int64 `[N, 4]`, as HEADS reads it. Raises
        CapacityError; some layers may have counted then."""
        begun = [layer.begin_step() for layer in layers]
        runs = [run for run, _ in begun]
        if runs != self._runs:
            self._runs, self._standing = runs, []
            numbers = np.array([run.numbers for run in runs])
            self._address, self._pitch = numbers[:, 0], numbers[:, 1]
            self._new_places = np.concatenate([numbers[:, :1], numbers[:, _PLACE]], 1)
        self._tokens = np.array([tokens for _, tokens in begun])
        self._new_places[:, 0] = self._address + (self._tokens - 1) * self._pitch
        return self._new_places

    def filled(self, layers: Sequence[LayerKV], attending: list[Attending], store: TieredStore) -> np.ndarray | None:
        """The rows of the step, int64 `[N, NUM_ROWS, WIDTH]`, for as long as the store is `still`; `parts` tells what
        they leave. None if some layer must be asked by `attend`."""
        standing = []
        for layer, at in zip(layers, attending, strict=True):
            its = layer.standing(at)
            if its is None:
                return None
            standing.append(its)
        if standing != self._standing:
            self._stack(standing, attending)
        if self._departures != store.departures:
            self._departures = -1
            if not store.places(self._pids, self._places):
                return None
            self._departures = store.departures
        self._count()
        return self._rows

    def _stack(self, standing: list[Standing], attending: list[Attending]) -> None:
        """Put together what stays."""
        self._standing, self._departures = standing, -1
        self._rows = np.stack([its.rows for its in standing])
        self._choosing, self._reading = self._rows[:, -2], self._rows[:, -1]
        self._reading[:, _RUN] = self._new_places[:, 1:]
        self._seen = np.array([its.seen for its in standing])
        self._most_parts = min(at.most_parts for at in attending)
        num_pages = np.array([len(its.pids) for its in standing])
        self._first_page = np.cumsum(num_pages) - num_pages
        self._pids = np.concatenate([its.pids for its in standing])
        self._places = np.empty(len(self._pids), dtype=np.int64)
        self._reading[:, r.A_PLACES] = self._places.ctypes.data + 8 * self._first_page
        is_chosen = np.array([its.is_chosen for its in standing])
        self._chosen, self._is_whole = np.flatnonzero(is_chosen), np.repeat(~is_chosen, num_pages)
        most = max(its.most * at.groups for its, at in zip(standing, attending, strict=True))
        self._ids = np.empty((len(standing), most if len(self._chosen) else 0), dtype=np.int32)
        addresses = self._ids.ctypes.data + self._ids.strides[0] * self._chosen
        self._choosing[self._chosen, r.C_IDS] = self._reading[self._chosen, r.A_IDS] = addresses
        self._counts = []

    def _count(self) -> None:
        """Fill in what this step reads of each layer: so many units, and so many tokens of the run."""
        counts = [its.counts for its in self._standing]
        if counts != self._counts:
            self._counts, each, chosen = counts, np.array(counts), self._chosen
            self._reading[:, r.A_COUNT] = units = each[:, 0]
            self._choosing[chosen[:, None], [r.C_COUNT, r.C_SINK, r.C_LOCAL]] = each[chosen]
            unit = self._reading[:, r.A_UNIT]
            self._whole = -(-units // np.maximum(1, SPAN // unit))
            each = np.stack([units * self._reading[:, r.A_GROUPS], self._reading[:, r.A_PAGE] // unit], 1)
            self._alike.clear()
            for layer in chosen.tolist():
                self._alike.setdefault(tuple(each[layer].tolist()), []).append(layer)
        seen = np.minimum(self._tokens, self._seen)
        self.parts = self._whole - (-seen // SPAN)
        assert self.parts.max() <= self._most_parts, "more parts than there is room for"
        self._reading[:, r.A_TAIL] = self._address + (self._tokens - seen) * self._pitch
        self._reading[:, r.A_TAIL_LEN], self._reading[:, r.A_PARTS] = seen, self.parts
        self._reading[:, r.ITEMS] = self._reading[:, r.A_GROUPS] * self.parts

    def read(self) -> np.ndarray:
        """Ids of the distinct pages that the step read, int64, once its rows have been worked through."""
        if not len(self._chosen):
            return self._pids
        is_read = self._is_whole.copy()
        for (count, per_page), layers in self._alike.items():
            is_read[self._ids[layers, :count] // per_page + self._first_page[layers, None]] = True
        found: np.ndarray = self._pids[is_read]
        return found
