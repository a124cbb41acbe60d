"""The rows of a model's step compute what its layers compute, around attention that is not theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attending import attending
from compiled_rows import nothing_yet, team
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.step_rows import ROW_SPACE, StepRows
from stratakv.runtime.model.step_tables import StepTables

BATCH = 2
POSITIONS = [5, 70]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return Model.load(tiny_llama, torch.device("cpu"), torch.float32)


class Step:
    """The rows of one step, its rotary tables, and memory for what the rows write by address."""

    def __init__(self, model: Model) -> None:
        self.rows, self.tables = model.step_rows(BATCH), model.step_tables(POSITIONS)
        self.kv = nothing_yet(model.num_layers, BATCH, 2, *self.rows.shapes[0][1:])
        """Each layer's new keys and values, `[N, B, 2, G, D]`."""
        for layer, b in np.ndindex(model.num_layers, BATCH):
            there = self.kv[layer, b]
            self.rows.places[layer, b] = there.data_ptr(), 4 * there.stride(1), 4 * there.stride(0), r.F32
        torch.manual_seed(0)
        self.rows.hidden.copy_(torch.randn(self.rows.hidden.shape))
        self.rows.turn(model.kinds, self.tables.lean)

    def run(self) -> None:
        self.rows.last.fill_(torch.nan)
        team().run(self.rows.table, 2)


@torch.inference_mode()
def by_layers(model: Model, hidden: Tensor, attended: Tensor, tables: StepTables) -> tuple[Tensor, list[Tensor]]:
    """What leaves the last layer `[B, C]`, and q `[B, H, D]`, k and v `[B, G, D]` of each, if every layer's attention
    gives `attended` `[B, H * D]`."""
    given: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        given.extend((q, k, v))
        return attended.view_as(q)

    for layer in range(model.num_layers):
        hidden = model.step_layer(layer, hidden, tables, attend)
    return hidden, given


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rows_compute_what_the_layers_do(model: Model) -> None:
    step = Step(model)
    rows, kv = step.rows, step.kv
    attended = rows.attended(0)
    attended.copy_(torch.randn(attended.shape))
    step.run()
    hidden, given = by_layers(model, rows.hidden, attended, step.tables)
    for layer in range(model.num_layers):
        for found, expected in zip(
            (rows.q[layer], kv[layer, :, 0], kv[layer, :, 1]), given[3 * layer : 3 * layer + 3], strict=True
        ):
            close(found, expected)
    close(rows.last, hidden)
    with torch.inference_mode():
        close(rows.logits, model.step_logits(hidden))


def test_parts_of_attention_are_put_together_for_the_output(model: Model) -> None:
    """As many of each sequence as it left, in all layers or in one."""
    step = Step(model)
    rows, shape = step.rows, step.rows.shapes[0]
    attended = rows.attended(0)
    at = attending(torch.randn(shape.heads, shape.dim), shape.kv_heads, 1000)
    room = at.parts.numel()
    parts = torch.rand(BATCH, room) + 0.5
    rows.parts[:] = 1, 3
    for b in range(BATCH):
        at.parts = parts[b]
        attended[b] = at.merged(1 + 2 * b)[0].flatten()
    hidden, _ = by_layers(model, rows.hidden, attended, step.tables)
    for layers in ([0], [1, 2]):
        for layer in layers:
            rows.merges(layer, parts, room)
        step.run()
        close(rows.last, hidden)
    attended.fill_(torch.nan)
    step.run()
    close(rows.last, hidden)
    rows.merges(1)
    step.run()
    assert rows.last.isnan().all(), "this layer takes what is attended elsewhere"


def test_what_attends_has_rows_of_its_own_between_heads_and_output(model: Model) -> None:
    rows = model.step_rows(BATCH)
    for layer in range(model.num_layers):
        here = rows.attending(layer)
        assert here.stop - here.start == ROW_SPACE * BATCH
        assert not rows.table[here].any()
        assert rows.table[[here.start - 1, here.stop], r.MARK].tolist() == [r.M_HEADS, r.M_OUT]


def test_a_layer_without_positions_is_not_turned(model: Model) -> None:
    lean = [layer for layer in model.lean if layer is not None]
    rows, tables = StepRows(lean, [True, False, True], model.step_logits, 1), model.step_tables(POSITIONS[:1])
    rows.turn(model.kinds, tables.lean)
    widths = [rows.table[rows.attending(layer).start - 1, r.H_ROTARY] for layer in range(model.num_layers)]
    assert widths == [rows.shapes[0].dim, 0, rows.shapes[0].dim]
