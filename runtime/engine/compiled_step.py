"""A decode step in compiled loops: a model's rows and those of what its layers read, worked through by a team.

Where everything that a step reads is in memory, it is one call. Otherwise layers come one by one, and each fetches
what it reads before its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from ...kernels.compiled import attention, choice, scores
from ...storage import TieredStore
from ..layers.attend_rows import Attending, Room, most_parts
from ..model.model import Model
from ..model.rotary import RotaryTables
from ..model.sharpen_row import SharpenRow
from ..model.step_rows import ROW_SPACE, StepRows
from ..model.step_tables import StepTables
from ..process.apart import fp32
from .sequence import Sequence

_BATCH_SIZES = 4
"""The most batch sizes for which rows are kept."""


class _Operations:
    """What layers fill rows with."""

    attend_bytes = staticmethod(attention.attend_bytes)
    score_bytes = staticmethod(scores.score_bytes)
    choice_bytes = staticmethod(choice.choice_bytes)

    attend = attention.attend
    score_bounds, make_tables, score_codes = scores.score_bounds, scores.make_tables, scores.score_codes
    choose = choice.choose


class Worker(Protocol):
    """Who works through tables: a `Team`."""

    def run(self, table: np.ndarray, threads: int | None = None) -> None: ...


class _Form:
    """What steps of one batch size compute with."""

    def __init__(self, model: Model, batch: int, tables: RotaryTables) -> None:
        self.rows = model.step_rows(batch)
        self._turns = {kind: (cos.float().clone(), sin.float().clone()) for kind, (cos, sin) in tables.items()}
        self.rows.turn(model.kinds, self._turns)
        head = model.step_logits
        self._sharp = None if head.is_exact else SharpenRow(head, self.rows.logits, self.rows.last)
        if self._sharp is None:
            self.table = self.rows.table
            """All rows."""
        else:
            self.table = np.concatenate([self.rows.table, self._sharp.table])
            self.rows.table = self.table[:-1]  # others change it
        self._merged: tuple[int, int] | None = None

    def turn(self, tables: RotaryTables) -> None:
        """Use these rotary tables of `for_lean`."""
        for kind, both in tables.items():
            for mine, its in zip(self._turns[kind], both, strict=True):
                mine.copy_(its)

    def merges(self, parts: Tensor, room: int) -> None:
        """Every layer leaves parts, as in `StepRows.merges`."""
        if self._merged != (parts.data_ptr(), room):
            for layer in range(len(self.rows.scales)):
                self.rows.merges(layer, parts, room)
            self._merged = parts.data_ptr(), room

    def merges_in(self, layer: int, parts: Tensor | None = None, room: int = 0) -> None:
        """One layer does what `StepRows.merges` says."""
        self.rows.merges(layer, parts, room)
        self._merged = None


class CompiledStep:
    """The steps of one model over one store."""

    def __init__(self, model: Model, store: TieredStore, team: Worker) -> None:
        self._model, self._store, self._team = model, store, team
        self._forms: dict[tuple[int, str], _Form] = {}
        self._parts = fp32(0)
        self._room = 0
        """Of `_parts`, numbers for each sequence."""
        self._attending_rows: StepRows | None = None
        self._attending_now: list[list[Attending]] = []
        """By sequence and layer: what attends in these rows. Layers hold on to it, so it stays from step to step."""
        self._here = np.empty((0, 0, ROW_SPACE), dtype=np.int64)
        """Where the table has the rows of each sequence and layer."""
        self._threads = 1
        self._rooms: list[Room] = []
        self._operations = _Operations()

    def run(
        self, sequences: list[Sequence], tokens: list[int], tables: StepTables, ahead: Callable[[int, Tensor], None],
        threads: int,
    ) -> Tensor:  # fmt: skip
        """Take one step with several sequences. Every layer has its token afterwards. Returns logits `[B, V]`.

        Args:
            ahead: told, where layers come one by one, of a layer and the input `[B, C]` of the one below it.
            threads: of the team.

        Raises CapacityError; some layers may have their token then.
        """
        model, batch = self._model, len(sequences)
        form, self._threads = self._of(batch, tables), threads
        rows = form.rows
        model.embed_step(tokens, rows.hidden)
        if rows.inputs is not None:
            model.input_rows(tokens, rows.inputs)
        form.turn(tables.lean)
        attending = self._attending(rows, sequences)
        for b, sequence in enumerate(sequences):
            layers = [sequence.layers[number] for number in rows.attends]
            rows.places[:, b] = sequence.past.rows.begin_step(layers, attending[b])
            for number, addresses in rows.states.items():
                sequence.layers[number].begin_mix(addresses[b])
        with self._store.still():
            is_filled = self._fill(form, sequences)
            if is_filled:
                self._work(form.table)
                for sequence in sequences:
                    self._store.count_read(sequence.past.rows.read())
        if is_filled:
            for b, sequence in enumerate(sequences):
                if sequence.tail_len + 1 == sequence.page_size:
                    for number, at in zip(rows.attends, attending[b], strict=True):
                        sequence.layers[number].end_page(at)
        else:
            self._layer_by_layer(form, sequences, attending, ahead)
        return model.step_logits.scaled(rows.logits.clone())

    def _attending(self, rows: StepRows, sequences: list[Sequence]) -> list[list[Attending]]:
        """What attends, by sequence and layer."""
        longest = max(sequence.num_tokens for sequence in sequences) + 1
        while len(self._rooms) < rows.batch:
            self._rooms.append(Room())
        rooms = self._rooms[: rows.batch]
        for room in rooms:
            room.begin_step()
        needed = most_parts(longest) * max(shape.heads * (2 + shape.dim) for shape in rows.shapes)
        if rows is self._attending_rows and needed <= self._room:
            return self._attending_now
        self._room = needed * 5 // 4
        if len(self._parts) < rows.batch * self._room:
            self._parts = fp32(rows.batch * self._room)
        parts = self._parts[: rows.batch * self._room].view(rows.batch, self._room)
        self._attending_rows = rows
        self._attending_now = [
            [
                Attending(rows.q[at][b], scale, parts[b], shape.kv_heads, rows.attended(at)[b], self._operations, room)
                for at, (scale, shape) in enumerate(zip(rows.scales, rows.shapes, strict=True))
            ]
            for b, room in enumerate(rooms)
        ]
        starts = np.array([rows.attending(layer).start for layer in range(len(rows.scales))])
        self._here = starts[:, None] + np.arange(rows.batch * ROW_SPACE).reshape(-1, 1, ROW_SPACE)
        return self._attending_now

    def _fill(self, form: _Form, sequences: list[Sequence]) -> bool:
        """Fill in what attends. Returns False if that cannot be in some layer."""
        rows = form.rows
        for b, sequence in enumerate(sequences):
            filled = sequence.past.rows.filled(self._store)
            if filled is None:
                return False
            rows.table[self._here[b]] = filled
            rows.parts[:, b] = sequence.past.rows.parts
        form.merges(self._parts, self._room)
        return True

    def _layer_by_layer(
        self, form: _Form, sequences: list[Sequence], attending: list[list[Attending]],
        ahead: Callable[[int, Tensor], None],
    ) -> None:  # fmt: skip
        rows = form.rows
        begin, own = 0, np.zeros((ROW_SPACE, rows.table.shape[1]), dtype=np.int64)
        for layer, number in enumerate(rows.attends):
            here = rows.attending(layer)
            self._work(rows.table[begin : here.start])
            ahead(number + 1, (rows.input if number else rows.hidden).to(self._model.step_dtype))
            begin = here.stop
            at = [of_layers[layer] for of_layers in attending]
            found = [s.layers[number].attend(own, at[b], self._work) for b, s in enumerate(sequences)]
            rows.parts[layer] = [parts or 0 for parts in found]
            if all(parts is None for parts in found):
                form.merges_in(layer)
                continue
            for b, parts in enumerate(found):
                if parts is None:
                    rows.parts[layer, b] = at[b].as_part()
            form.merges_in(layer, self._parts, self._room)
        self._work(form.table[begin:])

    def _work(self, some: np.ndarray) -> None:
        self._team.run(some, self._threads)

    def _of(self, batch: int, tables: StepTables) -> _Form:
        key = (batch, self._model.weights)
        if key not in self._forms:
            if len(self._forms) == _BATCH_SIZES:
                del self._forms[next(iter(self._forms))]
            self._forms[key] = _Form(self._model, batch, tables.lean)
        return self._forms[key]
