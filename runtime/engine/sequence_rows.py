"""The rows of a compiled step for all layers of one sequence, which stay from step to step.

Layers say what stays of theirs (`layers.standing`). Here it stands together, so that a step changes what it must
change, the newest token's place and some counts, for all layers at once:

    run      ... | token | token | new      a layer's newest tokens; the last `seen` of them are read
    pages    addresses, read again only where a page has left host memory
    ids      chosen units, written by the step

A layer that shares has its source's run, the new token in it, and chosen units of its own.

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

_PLACE = [RunNumbers._fields.index(name) for name in ("address", "head_pitch", "v_after", "kind")]
_TAIL = [r.A_TAIL_PITCH, r.A_TAIL_V_AFTER, r.A_TAIL_KIND]


class SequenceRows:
    """What one sequence's step reads and writes, in the table of whoever takes it."""

    def __init__(self) -> None:
        self._runs: tuple[Run, ...] = ()
        self._standing: tuple[Standing | None, ...] = ()
        self._counts: list[Counts] = []
        self._alike: list[tuple[slice | list[int], int, int]] = []
        """Layers that choose as many units of pages with as many: which, ids of each, units of a page."""
        self._departures: int | None = None
        """Of the store, when `_places` was written; None: it is not."""

    def begin_step(self, layers: Sequence[LayerKV], attending: list[Attending]) -> np.ndarray:
        """Count a token into every layer. Returns where its k and v go, int64 `[N, 4]`, as HEADS reads it. Raises
        CapacityError; some layers may have counted then."""
        begun = [layer.begin_step(at) for layer, at in zip(layers, attending, strict=True)]
        runs, tokens, standing = zip(*begun, strict=True)
        if runs != self._runs:
            numbers = np.array([run.numbers for run in runs])
            self._address, self._pitch, self._new_places = numbers[:, 0], numbers[:, 1], numbers[:, _PLACE]
            self._runs, self._standing = runs, ()
        if standing != self._standing:
            self._standing = ()
            if None not in standing:
                self._stack(standing, attending)
            self._standing = standing
        self._tokens = np.array(tokens)
        self._new_places[:, 0] = self._address + (self._tokens - 1) * self._pitch
        return self._new_places

    def filled(self, store: TieredStore) -> np.ndarray | None:
        """The rows of the step, int64 `[N, NUM_ROWS, WIDTH]`, for as long as the store is `still`; `parts` tells what
        they leave. None if some layer must be asked by `attend`."""
        if None in self._standing:
            return None
        if self._departures != store.departures:
            self._departures = None
            if not store.places(self._pids, self._places):
                return None
            self._departures = store.departures
        self._count()
        return self._rows

    def _stack(self, standing: tuple[Standing, ...], attending: list[Attending]) -> None:
        """Put together what stays."""
        self._counts, self._departures = [], None
        self._rows = np.stack([its.rows for its in standing])
        self._choosing, self._reading = self._rows[:, -2], self._rows[:, -1]
        self._reading[:, _TAIL] = self._new_places[:, 1:]
        self._groups, self._unit = self._reading[:, r.A_GROUPS].copy(), self._reading[:, r.A_UNIT].copy()
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
        self._ids = np.empty((len(standing), most if is_chosen.any() else 0), dtype=np.int32)
        addresses = self._ids.ctypes.data + self._ids.strides[0] * self._chosen
        self._choosing[self._chosen, r.C_IDS] = self._reading[self._chosen, r.A_IDS] = addresses

    def _count(self) -> None:
        """Fill in what this step reads of each layer: so many units, and so many tokens of the run."""
        counts = [its.counts for its in self._standing if its is not None]
        if counts != self._counts:
            self._counts = counts
            self._count_units(np.array(counts))
        seen = np.minimum(self._tokens, self._seen)
        self.parts = self._whole - (-seen // SPAN)
        """Of each layer, int64 `[N]`."""
        assert self.parts.max() <= self._most_parts, "more parts than there is room for"
        self._reading[:, r.A_TAIL] = self._address + (self._tokens - seen) * self._pitch
        self._reading[:, r.A_TAIL_LEN], self._reading[:, r.A_PARTS] = seen, self.parts
        self._reading[:, r.ITEMS] = self._groups * self.parts

    def _count_units(self, counts: np.ndarray) -> None:
        """The same of units alone; `counts` `[N, 3]` are `Counts`."""
        chosen, units = self._chosen, counts[:, 0]
        self._reading[:, r.A_COUNT] = units
        self._choosing[chosen[:, None], [r.C_COUNT, r.C_SINK, r.C_LOCAL]] = counts[chosen]
        self._whole = -(-units // np.maximum(1, SPAN // self._unit))
        alike: dict[tuple[int, int], list[int]] = {}
        in_page = self._reading[:, r.A_PAGE] // self._unit
        for layer, *kind in zip(
            chosen.tolist(), (units * self._groups)[chosen].tolist(), in_page[chosen].tolist(), strict=True
        ):
            alike.setdefault((kind[0], kind[1]), []).append(layer)
        every = slice(None)
        self._alike = [(every if len(layers) == len(counts) else layers, *kind) for kind, layers in alike.items()]

    def read(self) -> np.ndarray:
        """Ids of the pages that the step read, int64, distinct for each layer, once its rows have been worked
        through."""
        if not self._alike:
            return self._pids
        is_read = self._is_whole.copy()
        for layers, count, in_page in self._alike:
            ids = self._ids[layers, :count]
            pages = (ids if in_page == 1 else ids // in_page) + self._first_page[layers, None]
            is_read[pages.ravel()] = True
        found: np.ndarray = self._pids[np.flatnonzero(is_read)]
        return found
