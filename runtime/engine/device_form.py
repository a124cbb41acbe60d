"""What decode steps of some sequences compute with on the device, and the step itself: from tokens to logits.

    tokens -> embed -> per layer   before    norms, products, rotation                            model.lean_layer
                                   append    k and v go into the open pages, which lie in the device pool
                                   score, choose, find                                            layers.device_reading
                                   attend    to the units found and to the open pages, all sequences in one launch
                                   after     product, MLP
           -> logits

Everything that differs from step to step is pushed by the host in one copy. Tensors stay where they are, and shapes
follow from the budget and from room, so a recorded step can be repeated (`resident_step`).

Shapes  B sequences, G KV heads, R query heads each, S = 2 sides, L page size, D head dim
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.merge_states import merge_states
from ...kernels.paged_attention import paged_attention
from ...kernels.sinks import with_sinks
from ...storage import TieredStore
from ...storage.transfer.lane import for_device
from ..layers.device_reading import DeviceReading
from ..layers.pages import rows_of_units
from ..layers.step_pages import StepPages
from ..model.model import Model, grown
from ..model.step_tables import StepTables
from .branches import Branches

TOKEN, TAIL, SEALED, BUDGET = range(4)
"""The numbers of a sequence that are pushed: its newest token, how many lie behind its sealed pages with the newest,
how many in those, and how many of these are to be read."""
Ahead = Callable[[int, Tensor], object]
"""Told of a layer and the input `[B, C]` of the one below it."""


class _Units(NamedTuple):
    """The numbers of a step in units of so many tokens."""

    total: Tensor
    """int64 `[B, 1]`: those in sealed pages."""
    wanted: Tensor
    """int64 `[B, 1]`: those of them to be read."""
    opened: Tensor
    """int64 `[1, G, L / unit]`: those of the open page, in every table."""


class DeviceForm:
    """The tensors of steps of B sequences.

    Args:
        readings: by layer and sequence.
        num_pages: that each sequence may have until tables are made anew.
    """

    def __init__(self, model: Model, store: TieredStore, readings: list[list[DeviceReading]], num_pages: int) -> None:
        assert store.gpu is not None
        layout, device = store.layout, store.gpu.data.device
        self._model, self._layout = model, layout
        self.readings, self.num_pages, self.batch = readings, num_pages, len(readings[0])
        self._room = max(num_pages, _most_slots(readings))
        """Pages of a table, behind which comes the open one."""
        layers, rows = len(readings), self.batch * layout.sides * layout.num_heads
        tables = max(len(reading.found) for of_layer in readings for reading in of_layer)
        self._slots = np.zeros((layers, tables, self.batch, self._room + 1), dtype=np.int32)
        with torch.inference_mode(False):  # who writes there later need not be in that mode
            self._pushed = torch.zeros(4 * self.batch + layers * rows, dtype=torch.int64, device=device)
            self._tables = torch.zeros(self._slots.shape, dtype=torch.int32, device=device)
        self.numbers = self._pushed[: 4 * self.batch].view(4, self.batch)
        self._rows = self._pushed[4 * self.batch :].view(layers, rows)
        pages = store.gpu.data.view(getattr(torch, layout.dtype))
        self._pool = pages.view(-1, layout.num_heads, layout.sides, layout.page_size, layout.head_dim)
        self._branches = Branches(device, self.batch)
        self._open: np.ndarray | None = None
        self.counts: list[list[list[int]]] = []
        """Units that a step reads, by layer and sequence, of each of `DeviceReading.found`."""
        self.queries: list[Tensor] = []
        """Those of the last step, `[B, H, D]` by layer, rotated."""
        self._hold()

    @property
    def is_current(self) -> bool:
        return all(reading.is_current for of_layer in self.readings for reading in of_layer)

    def take(self, readings: list[list[DeviceReading]]) -> bool:
        """Read these from now on. Returns whether a recorded step goes on being right."""
        both = zip(self.readings, readings, strict=True)
        is_like = all(a.is_like(b) for mine, its in both for a, b in zip(mine, its, strict=True))
        self.readings = readings
        self._hold()
        return is_like

    def has_room_for(self, readings: list[list[DeviceReading]]) -> bool:
        return _most_slots(readings) <= self._room

    def _hold(self) -> None:
        self.waits = some_wait(self.readings)
        """Whether the host finds some of it."""
        for layer, of_layer in enumerate(self.readings):
            for b, reading in enumerate(of_layer):
                for table, pages in enumerate(reading.found):
                    self._slots[layer, table, b, : len(pages.slots)] = pages.slots
        self._open = None

    def push(
        self, tokens: list[int] | Tensor, sealed: list[int], tails: list[int], budgets: list[int], opened: np.ndarray
    ) -> None:
        """Send what this step goes by. The device need not have done what came before.

        Args:
            tokens: of each sequence, or int64 `[B]` on the device, which then need not have them yet.
            sealed, tails, budgets: of each sequence.
            opened: the slots of open pages, int64 `[layers, B]`.
        """
        known = [0] * self.batch if isinstance(tokens, Tensor) else tokens
        layout, numbers = self._layout, np.array([known, tails, sealed, budgets], dtype=np.int64)
        self.counts = [
            [reading.counts(sealed[b], budgets[b]) for b, reading in enumerate(of_layer)] for of_layer in self.readings
        ]
        newest = np.broadcast_to(numbers[TAIL] - 1, opened.shape)
        rows = rows_of_units(
            opened.reshape(-1), newest.reshape(-1), units=layout.page_size, groups=layout.num_heads, sides=layout.sides,
            last=layout.sides,
        )  # fmt: skip
        rows = np.moveaxis(rows, -1, 0)  # of each layer and sequence the sides, and of these the heads
        self._send(np.concatenate([numbers.reshape(-1), rows.reshape(-1)]), self._pushed)
        if isinstance(tokens, Tensor):
            self.numbers[TOKEN].copy_(tokens)
        if self._open is None or not np.array_equal(self._open, opened):
            self._open = opened
            self._slots[:, 0, :, -1] = opened
            for layer, of_layer in enumerate(self.readings):
                for b, reading in enumerate(of_layer):
                    if reading.pages.pool is not None:
                        self._slots[layer, 0, b, -1] = len(reading.pages.pool) - 1
            self._send(self._slots, self._tables)

    @staticmethod
    def _send(numbers: np.ndarray, to: Tensor) -> None:
        """Nobody waits for what is sent."""
        to.copy_(for_device(numbers, to.device), non_blocking=True)

    def compute(self, tables: StepTables, ahead: Ahead | None = None) -> Tensor:
        """The logits of the step that was pushed, fp32 `[B, V]`, good until the next. Nothing of it returns to the host
        unless the form `waits`.

        Args:
            tables: of the tokens' positions.
        """
        model = self._model
        tokens, lengths = self.numbers[TOKEN], self.numbers[TAIL] + self._room * self._layout.page_size
        units: dict[int, _Units] = {}
        hidden = model.embed(tokens)
        inputs, self.queries = model.inputs(tokens, hidden), []
        halves = model.halves if self.waits else model.lean  # whose graphs cannot be part of another
        for layer, lean in enumerate(halves):
            assert lean is not None
            if ahead is not None:
                ahead(layer + 1, hidden)
            q, k, v = lean.before(hidden, *tables.lean[model.kinds[layer]])
            q = grown(q, tables).contiguous()
            self.queries.append(q)
            self._append(layer, k, v)
            attended, more = self._attend(layer, q, lean.scale, lengths, units), inputs.of(layer)
            hidden = lean.after(hidden, attended, *(() if more is None else (more,)))
        return model.step_logits(hidden)

    def _append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The new token's k and v `[B, G, D]` into the open pages."""
        both = torch.stack([k, v], 1).view(-1, self._layout.head_dim)
        self._pool.view(-1, self._layout.head_dim).index_copy_(0, self._rows[layer], both.to(self._pool.dtype))

    def _attend(self, layer: int, q: Tensor, scale: float, lengths: Tensor, units: dict[int, _Units]) -> Tensor:
        """The attention `[B, H, D]` of q `[B, H, D]`. `units`: of the step so far, by tokens of one."""
        groups, dim = self._layout.num_heads, self._layout.head_dim
        query, sinks, outs = q.view(self.batch, groups, -1, dim), self._model.sinks[layer], []
        scaled = query.float() * scale
        for some in self._together(layer):
            unit = self.readings[layer][some.start].unit
            if unit not in units:
                units[unit] = self._in_units(unit)
            pages, values = self.readings[layer][some.start].pages, self.readings[layer][some.start].values
            found, chosen = self._find(layer, some, scaled, units[unit])
            opened, counts = units[unit].opened, _stacked([counts for _, counts in chosen])
            ids = torch.cat([opened.expand(len(found), -1, -1), found], -1)
            out, lse = paged_attention(
                query[some], self._pool_of(layer, some.start, pages), self._tables[layer, 0, some], ids, unit=unit,
                scale=scale, counts=counts + opened.shape[-1], lengths=lengths[some],
                beside=self.batch - len(found),
            )  # fmt: skip
            if values is not None:
                found, keys, counts = self._rebuild(layer, some, scaled, units[unit], chosen)
                more, lse_of_more = paged_attention(
                    query[some], self._pool_of(layer, some.start, values), self._tables[layer, 1, some], found,
                    unit=values.unit, scale=scale, counts=counts, keys=keys, beside=self.batch - len(found),
                )  # fmt: skip
                out, lse = merge_states([out, more], [lse, lse_of_more])
            outs.append(out if sinks is None else with_sinks(out, lse, sinks.view(lse.shape[1:])))
        return (outs[0] if len(outs) == 1 else torch.cat(outs)).view(q.shape)

    def _together(self, layer: int) -> list[slice]:
        """Neighbouring sequences whose units are found before any of them attends."""
        of_layer = self.readings[layer]

        def kind(b: int) -> tuple[list[tuple[int, int]], list[int], int]:
            found = of_layer[b].found
            is_apart = any(pages.pool is not None for pages in found)
            return [(pages.unit, pages.sides) for pages in found], of_layer[b].most, b if is_apart else -1

        found = [list(members) for _, members in groupby(range(self.batch), kind)]
        return [slice(members[0], members[-1] + 1) for members in found]

    def _in_units(self, unit: int) -> _Units:
        units, device = self._layout.page_size // unit, self.numbers.device
        opened = torch.arange(self._room * units, (self._room + 1) * units, device=device)
        total, wanted = (self.numbers[SEALED:] // unit).unsqueeze(-1)
        return _Units(total, wanted, opened.expand(1, self._layout.num_heads, -1))

    def _find(
        self, layer: int, some: slice, queries: Tensor, units: _Units
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Where the units lie that some sequences read, `[.., G, n]`; and, of each, these `[G, n]` and how many of each
        head count, `[G]`.

        Args:
            queries: of all sequences, `[B, G, R, D]`, scaled, fp32.
        """
        found, chosen = [], []
        for b in range(some.start, some.stop):
            reading = self.readings[layer][b]
            with self._branches.of(0 if self.waits else b - some.start):  # the host stages all in one buffer
                ids, counts = reading.choose(queries[b], units.total[b], units.wanted[b])
                found.append(reading.pages.find(ids, counts, self.counts[layer][b][0]))
            chosen.append((ids, counts))
        self._branches.join()
        return _stacked(found), chosen

    def _rebuild(
        self, layer: int, some: slice, queries: Tensor, units: _Units, chosen: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the values of further units lie that some sequences read, `[.., G, n]`, their keys `[.., G, n * unit,
        D]`, and how many of each head count, `[.., G]`. The others have been attended to: both may lie in one buffer.
        """
        found, keys, counts = [], [], []
        for b, of_sequence in enumerate(chosen, some.start):
            reading = self.readings[layer][b]
            assert reading.values is not None
            with self._branches.of(0 if self.waits else b - some.start):
                rebuilt = reading.rebuild(queries[b], units.total[b], units.wanted[b], *of_sequence)
                found.append(reading.values.find(rebuilt.ids, rebuilt.counts, self.counts[layer][b][1]))
            keys.append(rebuilt.keys)
            counts.append(rebuilt.counts)
        self._branches.join()
        return _stacked(found), _stacked(keys), _stacked(counts)

    def _pool_of(self, layer: int, b: int, pages: StepPages) -> Tensor:
        """The pages that a table of a layer and sequence is of, `[slots, G, S, L, D]`, or with fewer sides and more
        tokens."""
        if pages.pool is None:
            return self._pool.view(len(self._pool), self._layout.num_heads, pages.sides, -1, self._layout.head_dim)
        assert self._open is not None
        pages.pool[-1].copy_(self._pool[int(self._open[layer, b])])
        return pages.pool


def _stacked(each: list[Tensor]) -> Tensor:
    return torch.stack(each) if len(each) > 1 else each[0].unsqueeze(0)


def some_wait(readings: list[list[DeviceReading]]) -> bool:
    """Whether the host must find some of what is read."""
    return any(reading.waits for of_layer in readings for reading in of_layer)


def _most_slots(readings: list[list[DeviceReading]]) -> int:
    return max(len(pages.slots) for of_layer in readings for reading in of_layer for pages in reading.found)
