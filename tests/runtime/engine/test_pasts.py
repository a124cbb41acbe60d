"""A past has the layers of its model and indexes of its reach, and is given up when nothing leads back to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.pasts import Pasts
from stratakv.runtime.engine.sequence import Past
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.tiered import TieredLayer, tiered_layers


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    kv = KVConfig(index="spectral", budget=64, sink=8, local=8, page_size=8, disk_gb=0, host_gb=0.05)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        yield runtime.engine


@pytest.fixture
def pasts(engine: Engine) -> Pasts:
    return engine.pasts


def indexes(past: Past) -> list[object]:
    return [layer.index for layer in tiered_layers(past.layers)]


def keeps_queries(past: Past) -> list[bool]:
    return [layer.upkeep.queries.kept is not None for layer in tiered_layers(past.layers)]


def test_a_layer_with_a_window_keeps_that_and_others_pages(pasts: Pasts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts.model, "windows", [None, 20, None])
    first, sliding, last = pasts.new().layers
    assert isinstance(sliding, SlidingLayer)
    assert (sliding.layer, sliding.window) == (1, 20)
    assert isinstance(first, TieredLayer)
    assert isinstance(last, TieredLayer)
    assert (first.layer, last.layer) == (0, 2)
    assert [first.index, last.index] == [pasts.indexes[0], pasts.indexes[2]]
    assert first.budget_of(1000) == 64


def test_queries_are_kept_where_that_is_asked_for(pasts: Pasts) -> None:
    assert keeps_queries(pasts.new()) == [False] * 3
    assert keeps_queries(pasts.new(keep_queries=True)) == [True] * 3
    assert keeps_queries(pasts.instead_of(pasts.new(), 71)) == [False] * 3
    assert keeps_queries(pasts.instead_of(pasts.new(keep_queries=True), 71)) == [True] * 3


def test_pasts_of_one_reach_share_indexes_that_know_its_positions(
    pasts: Pasts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, rotation = [], pasts.model.rotation
    monkeypatch.setattr(pasts.model, "rotation", lambda *what: asked.append(what) or rotation(*what))
    own, far = indexes(pasts.new()), pasts.new(77)
    assert own == [*pasts.indexes.values()]
    assert indexes(pasts.new(77)) == indexes(far), "a state can be copied between two of them"
    assert not {*own} & {*indexes(far)}
    for layer in tiered_layers(far.layers):
        its = pasts.indexes[layer.layer]
        assert (layer.index.identity, layer.index.layer.number) == (its.identity, layer.layer)
        layer.index.layer.rotation.rotate(torch.ones(2, 1, 8), torch.zeros(1, dtype=torch.long))
    assert asked == [(0, 77), (1, 77), (2, 77)]


def test_indexes_of_the_last_few_reaches_are_kept(pasts: Pasts) -> None:
    first = indexes(pasts.new(101))
    for reach in (102, 103, 104):
        pasts.new(reach)
    assert indexes(pasts.new(101)) == first
    pasts.new(105)
    assert not {*indexes(pasts.new(101))} & {*first}


def test_whoever_watches_a_sequence_goes_on_watching(pasts: Pasts) -> None:
    past = pasts.new()
    tiered_layers(past.layers)[1].watch = print
    assert [layer.watch for layer in tiered_layers(pasts.instead_of(past, 71).layers)] == [None, print, None]


def test_pages_are_given_up_at_the_next_turn_once_nothing_leads_back(engine: Engine, pasts: Pasts) -> None:
    sequence = engine.new_sequence()
    engine.prefill(sequence, np.arange(3, 3 + 40, dtype=np.uint32))
    layers, point = tiered_layers(sequence.layers), sequence.snapshot()
    sequence.past = pasts.instead_of(sequence.past, 71)
    pasts.instead_of(point.past, 72)  # given up at once, and the first one is not given up twice for it
    assert len(pasts.abandoned) == 1
    with engine.turn():
        assert not pasts.abandoned
    assert [len(layer.pids) for layer in layers] == [5] * 3
    del point
    assert len(pasts.abandoned) == 1
    with engine.turn():
        assert [len(layer.pids) for layer in layers] == [0] * 3
    del sequence
    assert len(pasts.abandoned) == 1
    with engine.turn():
        engine.store.check_integrity()
