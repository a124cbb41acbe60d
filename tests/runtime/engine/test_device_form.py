"""A step as one function of device tensors: what layers compute one by one, and nothing that the host waits for."""

from __future__ import annotations

import pytest
import torch
from device_engines import PAGE, Tiers, World, config, device_engine, engine_in, two_layers
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from stratakv.kernels import code_scores
from stratakv.kernels.pq_scores import pq_scores_reference
from stratakv.runtime.layers.device_reading import DeviceReading
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.model.captured import Graphs
from stratakv.runtime.model.model import Model

INDEXES = ["spectral", "bounds", "oracle", "window", "leoam", "a2ats", "shadowkv:chunk=4:refine=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return two_layers(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("index", [*INDEXES, "dense"])
def test_a_step_is_what_layers_compute_one_by_one(model: Model, index: str) -> None:
    """Up to rounding: beside layers that somebody watches, so that each is asked by itself."""
    with (
        engine_in(model, index, "roomy") as engine,
        device_engine(model, config(index), Tiers()) as other,
    ):
        one_by_one = World(other)
        for sequence in one_by_one.sequences:
            for layer in tiered_layers(sequence.layers):
                layer.watch = lambda layer, step: None
        world, everyone = World(engine), [0, 1, 2, 3]
        for turn in range(2):
            found, expected = (each.step(everyone, PAGE + 1, turn) for each in (world, one_by_one))
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
            for each in (world, one_by_one):
                each.prompt(2, 20, turn)
        assert not one_by_one.sequences[0].past.device_steps


@pytest.mark.parametrize("place", ["roomy", "entries"])
@pytest.mark.parametrize("index", INDEXES)
def test_nothing_of_a_step_returns_to_the_host(
    model: Model, index: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers go through all of it: no number is looked at, and no shape follows from one."""
    with engine_in(model, index, place) as engine, torch.inference_mode():
        world = World(engine)
        world.step([0, 3], 1, 0)
        (steps,) = world.sequences[0].past.device_steps.values()
        tables = model.step_tables([40, 180])
        with FakeTensorMode(allow_non_fake_inputs=True):
            logits = steps.form.compute(tables)
        assert logits.shape == (2, model.config.vocab_size)
        choose = DeviceReading.choose

        def waiting(self: DeviceReading, query: Tensor, total: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
            return choose(self, query, total + int(total) * 0, wanted)

        monkeypatch.setattr(DeviceReading, "choose", waiting)
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
            steps.form.compute(tables)


def test_layers_of_a_step_that_waits_are_replayed_by_halves(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does not is recorded whole."""
    halves = list(model.halves)
    for place, is_used in (("roomy", False), ("span", True)):
        with engine_in(model, "bounds", place) as engine:
            world = World(engine)
            monkeypatch.setattr(model, "halves", [None] * len(halves))
            if is_used:
                with pytest.raises(AssertionError):
                    world.step([2, 3], 1, 0)
            else:
                assert world.step([2, 3], 1, 0).isfinite().all()
            monkeypatch.setattr(model, "halves", halves)


@pytest.mark.parametrize(
    ("index", "place"), [("spectral", "roomy"), ("a2ats", "roomy"), ("leoam", "entries"), ("shadowkv", "entries")]
)
def test_somebody_holds_what_a_recorded_step_reads(
    model: Model, index: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading says so, or it is the store's, the model's or the form's: else it might be gone when it is repeated."""
    monkeypatch.setattr(code_scores, "pq_scores", pq_scores_reference)  # a CPU's own form keeps a table for itself
    monkeypatch.setattr(model, "graphs", Graphs())
    model.graphs.are_off = True
    with engine_in(model, index, place) as engine, torch.inference_mode():
        world, store = World(engine), engine.store
        world.step([3], 1, 0)
        (steps,) = world.sequences[3].past.device_steps.values()
        form, tables = steps.form, model.step_tables([180])
        traced = make_fx(lambda numbers: form.compute(tables))(form.numbers)
        assert store.gpu is not None
        held = [store.gpu.data, store.host.data, form.numbers, form._tables, *model.hf.parameters()]
        held += [table for tables in model.graphs._held.values() for table in tables]
        for reading in (reading for of_layer in form.readings for reading in of_layer):
            held += [*reading.ranking.reads, *(tensor for pages in reading.found for tensor in pages.reads)]
        known = {tensor.untyped_storage().data_ptr() for tensor in held}
        read = [*traced.parameters(), *traced.buffers()]
        assert len(read) > len(form.readings)
        assert not [tensor for tensor in read if tensor.untyped_storage().data_ptr() not in known]
