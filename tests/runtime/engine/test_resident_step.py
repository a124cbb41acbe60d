"""Whole steps on the device: the same bits wherever pages lie, called or recorded, and whatever has happened before."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import pytest
import torch
from device_engines import EVERYWHERE, PAGE, Tiers, World, config, device_engine, engine_in, kinds, two_layers
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from stratakv.runtime.engine import forward, resident_step
from stratakv.runtime.engine.branches import Branches
from stratakv.runtime.engine.device_form import DeviceForm
from stratakv.runtime.engine.resident_step import Steps
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.model.captured import Graphs
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.step_tables import StepTables

INDEXES = ["spectral", "bounds", "oracle", "window", "leoam", "a2ats", "shadowkv:chunk=4:refine=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return two_layers(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _rooms_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_step, "_FEWEST_PAGES", 2)


SOME = st.sets(st.integers(0, 3), min_size=1).map(sorted)
ONE = st.integers(0, 3)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), SOME, st.integers(1, 2 * PAGE), st.integers(0, 99)),
        st.tuples(st.just("prompt"), ONE, st.integers(1, 70), st.integers(0, 99)),
        st.tuples(st.sampled_from(["undo", "mark", "cut", "fork", "reload"]), ONE),
    ),
    min_size=4,
    max_size=8,
).map(lambda ops: [("step", [0, 1, 2, 3], 3, 5), *ops, ("step", [0, 2, 3], PAGE + 1, 7)])


@pytest.mark.parametrize("index", INDEXES)
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(ops=OPS)
def test_where_pages_lie_changes_no_bit(model: Model, index: str, ops: list[tuple[Any, ...]]) -> None:
    with ExitStack() as stack, torch.inference_mode():
        worlds = {place: World(stack.enter_context(engine_in(model, index, place))) for place in EVERYWHERE}
        for name, *given_ in ops:
            found = {place: getattr(world, name)(*given_) for place, world in worlds.items()}
            if name == "step":
                assert all(torch.equal(found["roomy"], other) for other in found.values()), (name, given_)
        assert kinds(worlds["roomy"].sequences[0]) == {"PoolPages"}
        assert kinds(worlds["entries"].sequences[0]) == {"EntryPages"}
        assert "SpanPages" in kinds(worlds["span"].sequences[0])
        for world in worlds.values():
            for sequence in world.sequences:
                sequence.close()


class Traced(Graphs):
    """Recording without a GPU: the operations of a step, on the memory that they had when it was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.num_recorded = self.num_replayed = 0

    def record(
        self, work: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
    ) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        traced = make_fx(lambda *given_: work(*given_))(*inputs)
        outputs = tuple(torch.full_like(out, torch.nan) for out in traced(*inputs))
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            for held, out in zip(outputs, traced(*inputs), strict=True):
                held.copy_(out)

        return replay, outputs


@pytest.mark.parametrize(("index", "place"), [("bounds", "roomy"), ("window", "entries")])
def test_a_recorded_step_is_the_called_one(
    model: Model, index: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after pages were sealed, rooms have doubled, and another sequence's step came between."""
    steps = [([3], 3 * PAGE, 1), ([2], 4, 2), ([3], PAGE, 3)]
    with engine_in(model, index, place) as engine:
        world = World(engine)
        called = [world.step(*step) for step in steps]
    graphs = Traced()
    monkeypatch.setattr(model, "graphs", graphs)
    with engine_in(model, index, place) as engine:
        world = World(engine)
        recorded = [world.step(*step) for step in steps]
    assert all(torch.equal(a, b) for a, b in zip(called, recorded, strict=True))
    assert 1 < graphs.num_recorded < 6
    assert graphs.num_replayed > PAGE


def test_steps_that_were_worth_recording_are_recorded_again_at_once() -> None:
    class Form:
        numbers, queries, answer = torch.zeros(4, 1, dtype=torch.int64), list[Tensor](), False

        def take(self, readings: object) -> bool:
            return self.answer

        def compute(self, tables: object) -> Tensor:
            calls.append("compute")
            return torch.zeros(1, 3)

    class Recording(Graphs):
        def record(self, work: Any, inputs: tuple[Tensor, ...]) -> Any:
            calls.append("record")
            return lambda: calls.append("replay"), (torch.zeros(1, 3),)

    calls, form, graphs, tables = list[str](), Form(), Recording(), StepTables({}, {})
    steps = Steps(cast(DeviceForm, form), ())
    for answer in (True, False):
        for _ in range(4):
            steps.take(tables, graphs)
        form.answer = answer
        steps.read([])
    steps.take(tables, graphs)
    before, after = ["compute", "compute", "record", "replay", "replay"], ["replay"] * 4
    assert calls == [*before, *after, "record", "replay"]


def test_it_can_be_turned_off(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with device_engine(model, config("bounds"), Tiers()) as engine:
        assert engine.resident is not None
    monkeypatch.setenv("STRATAKV_RESIDENT", "0")
    with device_engine(model, config("bounds"), Tiers()) as engine:
        assert engine.resident is None
        assert engine.decode([World(engine).sequences[0]], [5]).isfinite().all()


def test_a_batch_that_waits_takes_no_rows_from_steps_of_one_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either keeps entries of its own kind; whose were given back must not be read, nor written, any more."""
    turns, far = [[3], [2, 3], [3], [2, 3], [3]], PageReader._is_far
    with engine_in(model, "bounds", "roomy") as engine:
        world = World(engine)
        expected = [world.step(some, 1, at) for at, some in enumerate(turns)]
    with engine_in(model, "bounds", "entries") as engine:
        world = World(engine)
        on_disk = [layer.reader for layer in tiered_layers(world.sequences[2].layers)]
        monkeypatch.setattr(PageReader, "_is_far", lambda self: self not in on_disk and far(self))
        for at, some in enumerate(turns):
            found = world.step(some, 1, at)
            world.engine.store.gpu.data.view(torch.float32)[world.engine.store.gpu.state == 0] = torch.nan
            assert torch.equal(found, expected[at]), at
        assert kinds(world.sequences[2]) == {"HostEntries"}
        assert kinds(world.sequences[3]) == {"HostEntries", "EntryPages"}


def test_a_closed_sequence_is_in_no_step_of_others(model: Model) -> None:
    with engine_in(model, "bounds", "roomy") as engine:
        world = World(engine)
        for some in ([0, 1], [0], [1, 2]):
            world.step(some, 1, 0)
        world.points[1], first, last = None, *(world.sequences[n] for n in (1, 2))
        state = weakref.ref(tiered_layers(first.layers)[0].state)
        gc.disable()
        try:
            first.close()
            assert state() is None
        finally:
            gc.enable()
        assert not last.past.device_steps
        assert len(world.sequences[0].past.device_steps) == 1


def test_a_past_keeps_the_steps_of_few_batches(model: Model) -> None:
    with engine_in(model, "bounds", "roomy") as engine:
        world = World(engine)
        for some in ([0], [0, 1], [2, 0], [0, 3], [3, 0]):
            world.step(some, 1, 0)
        kept = [[len(key) for key in sequence.past.device_steps] for sequence in world.sequences]
        assert kept == [[2, 2], [], [], [2, 2]]


def test_what_was_begun_before_an_error_is_waited_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory must not change before the device has read it."""
    with engine_in(model, "bounds", "roomy") as engine:
        world, noted = World(engine), list[torch.device]()
        monkeypatch.setattr(engine.store.host.in_flight, "note", noted.append)

        def failing(*given: Any) -> Tensor:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(DeviceForm, "compute", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            world.step([3], 1, 0)
        assert noted == [torch.device("cpu")]


@pytest.mark.parametrize(("place", "expected"), [("entries", {0, 1, 2}), ("waits", {0})])
def test_only_what_the_host_has_no_part_in_goes_side_by_side(
    model: Model, place: str, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it fetches passes through one buffer."""
    with engine_in(model, "bounds", "entries") as engine:
        world, of, branches = World(engine), Branches.of, set[int]()
        monkeypatch.setattr(Branches, "of", lambda self, number: branches.add(number) or of(self, number))
        if place == "waits":
            monkeypatch.setattr(PageReader, "_is_far", lambda self: False)
        world.step([1, 2, 3], 1, 0)
        assert branches == expected


def test_a_step_that_waits_takes_back_guesses_that_are_late(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still queued for a layer when the step has come to it."""
    monkeypatch.setattr(PageReader, "_is_far", lambda self: False)
    with engine_in(model, "bounds", "entries") as engine:
        world, told = World(engine), list[tuple[str, int]]()
        layers = tiered_layers(world.sequences[3].layers)
        monkeypatch.setattr(forward, "FIRST_GUESSED", 1)
        for layer in layers:
            at = layer.layer
            monkeypatch.setattr(layer, "look_ahead", lambda query, at=at: told.append(("guess", at)))
            monkeypatch.setattr(layer.lookahead, "begin_step", lambda at=at: told.append(("come", at)))
        world.step([3], 1, 0)
        assert told == [("come", 0), ("guess", 1), ("come", 1)]
