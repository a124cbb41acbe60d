"""Readings: current while nothing moved, and alike while a recorded step may go on with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from device_engines import PAGE, World, config, engine_in, two_layers

from stratakv.runtime.engine.indexes import make_indexes
from stratakv.runtime.layers.device_reading import DeviceReading, can_be_read
from stratakv.runtime.layers.step_pages import StepPages
from stratakv.runtime.layers.tiered import TieredLayer, tiered_layers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with engine_in(two_layers(tmp_path_factory.mktemp("model")), "bounds", "roomy") as engine:
        yield World(engine)


def reading_of(layer: TieredLayer, budget: int = 56) -> DeviceReading:
    found = layer.device_reading(budget, 64, waits=False)
    assert found is not None
    return found


def test_a_page_that_is_sealed_or_left_ends_a_reading(world: World) -> None:
    (layer, _), store = tiered_layers(world.sequences[3].layers), world.engine.store
    reading = reading_of(layer)
    assert reading.is_current
    world.step([3], PAGE, 1)
    assert not reading.is_current
    reading = reading_of(layer)
    assert reading.is_current
    assert store.gpu is not None
    with store.still():
        store._residency.evict(store.gpu, store.slots_in(store.gpu, layer.pids[:1]))
    assert not reading.is_current


def test_a_recorded_step_goes_on_with_what_lies_where_it_lay(world: World) -> None:
    layer, _ = tiered_layers(world.sequences[3].layers)
    before = reading_of(layer)
    room = before.ranking.room
    world.step([3], PAGE, 1)
    after = reading_of(layer)
    assert after.is_like(before) == (after.ranking.room == room)
    assert not after.is_like(reading_of(layer, budget=64))
    while after.ranking.room == room:
        world.step([3], PAGE, 2)
        after = reading_of(layer)
    assert not after.is_like(before)


def test_what_is_read_is_within_the_budget_and_what_there_is(world: World) -> None:
    reading = reading_of(tiered_layers(world.sequences[3].layers)[0])
    assert [reading.counts(sealed, budget) for sealed, budget in ((160, 56), (160, 49), (24, 56))] == [[7], [6], [3]]
    total, wanted = torch.tensor([20]), torch.tensor([6])
    ids, counts = reading.choose(torch.ones(2, 2, 8), total, wanted)
    assert (ids.shape, counts.tolist()) == ((2, 7), [6, 6])
    assert (ids[:, :6].diff() > 0).all()
    assert ids[:, :6].max() == 19, "the last ones are read whatever their scores"


def test_a_page_that_leaves_while_a_reading_is_made_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads move pages."""
    (layer, _), store = tiered_layers(world.sequences[3].layers), world.engine.store
    step_pages = layer.reader.step_pages

    def and_left(*given: Any, **named: Any) -> StepPages | None:
        found = step_pages(*given, **named)
        assert store.gpu is not None
        with store.still():
            store._residency.evict(store.gpu, store.slots_in(store.gpu, layer.pids[:1]))
        return found

    assert reading_of(layer).is_current
    monkeypatch.setattr(layer.reader, "step_pages", and_left)
    assert not reading_of(layer).is_current


def test_an_index_that_has_no_room_to_rank_all_units_is_not_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that keeps no state ranks so many pages, and no more."""
    layer, _ = tiered_layers(world.sequences[3].layers)
    ranking, units = layer.index.ranking(layer.state), layer.sealed // PAGE
    assert ranking is not None
    for room in (units, units - 1):
        monkeypatch.setattr(layer.index, "ranking", lambda state, room=room: replace(ranking, room=room))
        assert (layer.device_reading(56, 64, waits=False) is None) == (room < units)


def test_an_index_that_attends_in_its_own_way_has_none(world: World) -> None:
    model = world.engine.model
    given = {index: make_indexes(model, config(index), {}) for index in ("bounds", "shadowkv", "magicpig", "tidal")}
    assert [index for index, made in given.items() if all(map(can_be_read, made))] == ["bounds", "shadowkv"]
