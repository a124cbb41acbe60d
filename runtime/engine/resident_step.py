"""Decode steps in which nothing returns to the host, recorded as CUDA graphs.

A step of some sequences has a `DeviceForm`, made again when room runs out. Its graph is good for as long as what it
reads lies where it lay; pages that are sealed, or move, change tables only. Where some pages can be found by the host
alone, the same step waits for it in every layer, and is not recorded. Which of them happens changes no bit.

Forms belong to the pasts of all their sequences: what they hold goes when one of these does. With `STRATAKV_RESIDENT=0`
there are no such steps: layers are launched one by one, as where a model or an index has none.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...kernels.launch import block_of, cdiv
from ...retrieval import Index
from ...storage import TieredStore
from ..layers.device_reading import DeviceReading, can_be_read
from ..layers.tiered import TieredLayer, tiered_layers
from ..model.captured import Graphs
from ..model.model import Model
from ..model.step_tables import StepTables
from .device_form import Ahead, DeviceForm, some_wait
from .sequence import Past, Sequence

logger = logging.getLogger(__name__)
SWITCH = "STRATAKV_RESIDENT"
"""Of the environment: 0 turns it off."""
_FEWEST_PAGES = 64
"""There is room for so many at least."""
_CALLS = 3
"""Steps that are called before one is recorded: a batch that shrinks passes each size only briefly."""
_TRIES = 3
"""Times that pages are looked for while other threads move them, before the host finds them."""
_FORMS = 2
"""That a past keeps: of itself, and of a batch that it is in."""
Members = tuple[weakref.ref[Past], ...]
"""The pasts of a batch, in order."""


def resident_step(model: Model, store: TieredStore, indexes: list[Index]) -> ResidentStep | None:
    """The steps of a model over a store that has a device pool; None where not all of its layers attend to pages, or
    some mix experts, which the host is asked for, or an index attends in its own way; and where the user has turned
    them off."""
    lean = [layer for layer in model.lean if layer is not None and layer.has_halves and layer.experts is None]
    is_known = len(lean) == model.num_layers == len(model.tiered) and model.value_dim is None
    is_off = os.environ.get(SWITCH) == "0"
    if is_off or store.gpu is None or not is_known or not all(can_be_read(index) for index in indexes):
        return None
    return ResidentStep(model, store)


class Record(NamedTuple):
    """A recorded step."""

    replay: Callable[[], object]
    logits: Tensor
    queries: list[Tensor]
    graphs: Graphs
    """Of the model: others when its weights are."""


class Steps:
    """The steps of some sequences. The past of each keeps them, until one is closed.

    Args:
        members: the pasts, which these steps do not keep.
    """

    def __init__(self, form: DeviceForm, members: Members) -> None:
        self.form, self._members = form, members
        self._record: Record | None = None
        self._calls = 0
        for past in self._pasts:
            kept = [*past.device_steps.items()]  # another thread may close a member meanwhile
            others = [steps for key, steps in kept if key != members]
            if len(others) == _FORMS:
                others[0].end()
            past.device_steps[members] = self

    @property
    def _pasts(self) -> list[Past]:
        return [past for member in self._members if (past := member()) is not None]

    def end(self) -> None:
        """Nobody keeps them any more."""
        for past in self._pasts:
            past.device_steps.pop(self._members, None)

    def read(self, readings: list[list[DeviceReading]]) -> None:
        """Pages were sealed, or have moved."""
        if not self.form.take(readings):
            self._record = None

    def take(self, tables: StepTables, graphs: Graphs | None) -> Tensor:
        """Take the step that was pushed, from the record if there is one. Returns logits `[B, V]`."""
        record = self._recorded(tables, graphs)
        if record is None:
            return self.form.compute(tables)
        record.replay()
        self.form.queries = record.queries
        return record.logits.clone()

    def _recorded(self, tables: StepTables, graphs: Graphs | None) -> Record | None:
        if graphs is None or graphs.are_off:
            return None
        if self._record is not None and self._record.graphs is graphs:
            return self._record
        self._calls += 1
        if self._calls < _CALLS:
            return None
        form, numbers = self.form, self.form.numbers
        try:
            replay, (logits,) = graphs.record(lambda _: (form.compute(tables),), (numbers,))
        except RuntimeError as error:
            logger.warning("decode goes on without CUDA graphs of whole steps: %s", error)
            graphs.are_off = True
            return None
        self._record = Record(replay, logits, form.queries, graphs)
        return self._record


class ResidentStep:
    """The steps of one model over one store."""

    def __init__(self, model: Model, store: TieredStore) -> None:
        self._model, self._store = model, store

    def waits(self, sequences: list[Sequence]) -> bool:
        """Whether the next step of these waits for the host, as far as the last one tells."""
        steps: Steps | None = sequences[0].past.device_steps.get(_members(sequences))
        return steps is None or steps.form.waits

    def run(
        self, sequences: list[Sequence], tokens: list[int] | Tensor, tables: StepTables, ahead: Ahead
    ) -> Tensor | None:
        """Take one step with several sequences. Every layer has its token afterwards.

        Args:
            tokens: of each sequence, or int64 `[B]` on the device.
            tables: of the tokens' positions.
            ahead: told, where the host waits for layers, of a layer and the input `[B, C]` of the one below it.

        Returns logits fp32 `[B, V]`; None, with nothing done, where only `LayerKV.step` can take it.

        Raises CapacityError; some layers may have their token then.
        """
        layers = [tiered_layers(sequence.layers) for sequence in sequences]
        of_layers = [list(some) for some in zip(*layers, strict=True)]
        lengths = [sequence.num_tokens for sequence in sequences]
        steps = self._steps_of(sequences, of_layers, waits=False)
        if steps is None:
            return None
        opened = np.array([[layer.count_in() for layer in some] for some in of_layers])
        sealed, tails = [some[0].sealed for some in layers], [some[0].tail_len for some in layers]
        budgets = [some[0].step_budget for some in layers]

        def push(form: DeviceForm) -> None:
            form.push(tokens, sealed, tails, budgets, opened)

        def come(layer: int, hidden: Tensor) -> None:
            """The step has come to the layer below: what is still queued for that one is late."""
            for cache in of_layers[layer - 1]:
                cache.lookahead.begin_step()
            ahead(layer, hidden)

        for _ in range(_TRIES):
            if steps is None or steps.form.waits:
                break
            with self._store.still():
                if steps.form.is_current:
                    push(steps.form)
                    try:
                        logits = steps.take(tables, self._model.graphs)
                    finally:  # what was begun before an error reads pages, too
                        self._store.host.in_flight.note(self._model.device)
                    return self._done(steps.form, of_layers, logits)
            steps = self._steps_of(sequences, of_layers, waits=False)
        else:
            steps = self._steps_of(sequences, of_layers, waits=True)
        if steps is None:
            for sequence, length in zip(sequences, lengths, strict=True):
                sequence.undo_step(length)
            return None
        push(steps.form)
        return self._done(steps.form, of_layers, steps.form.compute(tables, come))

    def _done(self, form: DeviceForm, of_layers: list[list[TieredLayer]], logits: Tensor) -> Tensor:
        """What layers are told of a step that the device has, or will have taken."""
        for layer, (some, lean) in enumerate(zip(of_layers, self._model.lean, strict=True)):
            for b, (cache, reading) in enumerate(zip(some, form.readings[layer], strict=True)):
                cache.note_read(reading, form.counts[layer][b])
                if cache.pages.is_full and lean is not None:
                    cache.note_query(form.queries[layer][b], lean.scale)
        return logits

    def _steps_of(self, sequences: list[Sequence], of_layers: list[list[TieredLayer]], *, waits: bool) -> Steps | None:
        """The steps of these sequences, with a form that is current; None where a layer has no reading."""
        members = _members(sequences)
        steps: Steps | None = sequences[0].past.device_steps.get(members)
        if steps is not None and steps.form.is_current and (steps.form.waits or not waits):
            return steps
        num_pages = max(_FEWEST_PAGES, block_of(max(len(layer.pids) for layer in of_layers[0]) + 1))
        waits = waits or not all(layer.reader.is_found_by_device for some in of_layers for layer in some)
        readings = self._readings(of_layers, num_pages, waits=waits)
        if not waits and readings is not None and some_wait(readings):
            readings = self._readings(of_layers, num_pages, waits=True)
        if readings is None:
            if steps is not None:
                steps.end()
            return None
        if steps is not None and steps.form.num_pages == num_pages and steps.form.has_room_for(readings):
            steps.read(readings)
            return steps
        return Steps(DeviceForm(self._model, self._store, readings, num_pages), members)

    @staticmethod
    def _readings(
        of_layers: list[list[TieredLayer]], num_pages: int, *, waits: bool
    ) -> list[list[DeviceReading]] | None:
        found: list[list[DeviceReading]] = []
        for some in of_layers:
            of_layer = [layer.device_reading(_rounded(layer), num_pages, waits=waits) for layer in some]
            known = [reading for reading in of_layer if reading is not None]
            if len(known) < len(of_layer):
                return None
            found.append(known)
        return found


def _members(sequences: list[Sequence]) -> Members:
    return tuple(weakref.ref(sequence.past) for sequence in sequences)


def _rounded(layer: TieredLayer) -> int:
    """The tokens that steps of about this length read at most, up to an eighth more: shapes follow from it, and a share
    of a text grows with that."""
    budget = layer.budget_of(layer.sealed + layer.layout.page_size)
    step = max(1, block_of(budget) // 16)
    return cdiv(budget, step) * step
