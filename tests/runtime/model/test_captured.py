"""Replayed halves of layers against called ones. Without CUDA what a graph does is played: it computes anew from the
memory that it was recorded on, into the memory that it gave, and nothing else of a step is right by chance."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from torch import Tensor

from stratakv.runtime.model.captured import Captured, CapturedLayer, Graphs, Work
from stratakv.runtime.model.model import Model


class Played(Graphs):
    """Graphs as CUDA replays them. Between steps everything they gave is garbage."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []
        self.num_replays = 0

    def record(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        outputs = tuple(output.clone() for output in work(*inputs))
        self.given += outputs

        def replay() -> None:
            self.num_replays += 1
            for output, found in zip(outputs, work(*inputs), strict=True):
                output.copy_(found)

        return replay, outputs

    def spoil(self) -> None:
        for output in self.given:
            output.fill_(float("nan"))


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[Model]:
    with torch.inference_mode():
        yield Model.load(tiny_llama, torch.device("cpu"), torch.float32)


def step(model: Model, hidden: Tensor, position: int) -> Tensor:
    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        of = q.shape[1] // k.shape[1]
        return torch.tanh(q * k.repeat_interleave(of, 1)) + v.repeat_interleave(of, 1) * scale

    tables = model.step_tables([position + row for row in range(len(hidden))])
    for layer in range(model.num_layers):
        if layer:
            model.query(layer, hidden[:1], tables.of(0))  # guessing comes between, and must not disturb
        hidden = model.step_layer(layer, hidden, tables, attend)
    return hidden.clone()


def test_replayed_steps_equal_called_ones(model: Model) -> None:
    """Of batches that change, the fifth size of which has no graphs any more."""
    graphs, draw = Played(), torch.Generator().manual_seed(2)
    batches = [1, 1, 1, 1, 3, 1, 3, 3, 3, 2, 2, 2, 4, 4, 4, 5, 5, 5, 5, 1, 2]
    inputs = [torch.randn(batch, model.config.hidden_size, generator=draw) for batch in batches]
    called, before = [step(model, hidden, 7 * at) for at, hidden in enumerate(inputs)], [one.clone() for one in inputs]
    model.use_graphs(graphs)
    for at, hidden in enumerate(inputs):
        graphs.spoil()
        assert torch.equal(step(model, hidden, 7 * at), called[at])
    assert all(map(torch.equal, inputs, before)), "what was given is not ours to write to"
    replayed = sum(batch < 5 and batches[:at].count(batch) >= 2 for at, batch in enumerate(batches))
    assert graphs.num_replays == replayed * 2 * model.num_layers


def test_what_always_lies_there_is_not_copied(model: Model) -> None:
    """Layers read what the one before gave, and tables, where they are."""
    graphs = Played()
    model.use_graphs(graphs)
    for position in range(3):
        step(model, torch.randn(1, model.config.hidden_size), position)
    for layer in range(1, model.num_layers):
        halves, below = model.halves[layer], model.halves[layer - 1]
        assert isinstance(halves, CapturedLayer)
        assert isinstance(below, CapturedLayer)
        gave = below._after._captured[1][2][0]
        assert halves._before._captured[1][0][0] is halves._after._captured[1][0][0] is gave
        assert all(graphs.lasts(table) for table in halves._before._captured[1][0][1:])


def test_what_cannot_be_captured_is_called(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Graphs):
        def record(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
            raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Refusing()
    double, triple = (Captured(lambda x, by=by: (by * x,), graphs) for by in (2, 3))
    with caplog.at_level(logging.WARNING):
        for value in range(6):
            assert double(torch.full((1, 2), float(value)))[0].tolist() == [[2 * value] * 2]
            assert triple(torch.full((1, 2), float(value)))[0].tolist() == [[3 * value] * 2]
    assert [record.getMessage() for record in caplog.records] == [
        "decode goes on without CUDA graphs: operation not permitted when stream is capturing"
    ]


class Cuda:
    """As much of CUDA as recording asks for: which stream is current, what it has waited for, and a pool of memory that
    goes with its last graph."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        cuda, graphs = self, weakref.WeakSet[Any]()
        self.num_pools = 0

        class Stream:
            def __init__(self, device: object = None) -> None:
                self.waited: list[Stream] = []

            def wait_stream(self, other: Stream) -> None:
                self.waited.append(other)

        class Graph:
            def replay(self) -> None:
                """Nothing is recorded."""

        @contextmanager
        def stream(new: Stream) -> Iterator[None]:
            before, cuda.current = cuda.current, new
            try:
                yield
            finally:
                cuda.current = before

        @contextmanager
        def graph(made: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            cuda.num_pools += not graphs
            graphs.add(made)
            before, cuda.current = cuda.current, stream
            yield
            cuda.current = before  # not after an error, as PyTorch

        self.main = self.current = Stream()
        given = {"Stream": Stream, "CUDAGraph": Graph, "stream": stream, "graph": graph, "graph_pool_handle": object}
        for name, thing in given.items():
            patch.setattr(torch.cuda, name, thing)
        patch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)


def test_graphs_share_memory_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose last graph has gone takes no other one as long as anything of it is held."""
    cuda, graphs, some = Cuda(monkeypatch), Graphs(), (torch.zeros(1),)
    for _ in range(3):
        streams = list[object]()
        replay, _ = graphs.record(lambda x, seen=streams: seen.append(cuda.current) or (x,), some)
        assert streams == [graphs._beside, graphs._beside], "what libraries keep is not made in a capture"
        del replay
    assert cuda.num_pools == 1


@pytest.mark.parametrize("failing", [0, 1], ids=["called", "captured"])
def test_work_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    cuda, graphs, calls = Cuda(monkeypatch), Graphs(), iter(range(2))

    def work(x: Tensor) -> tuple[Tensor, ...]:
        if next(calls) == failing:
            raise RuntimeError("no memory")
        return (x,)

    with pytest.raises(RuntimeError, match="no memory"):
        graphs.record(work, (torch.zeros(1),))
    assert cuda.current is cuda.main
    assert cuda.main.waited == [graphs._beside], "what has begun there is still under way"


@pytest.mark.gpu
def test_a_graph_can_be_recorded_when_all_others_have_gone() -> None:
    graphs, x = Graphs(), torch.ones(64, 64, device="cuda")
    held = []
    for _ in range(3):
        replay, (out,) = graphs.record(lambda x: (x @ x,), (x,))
        out.zero_()
        replay()
        assert (out == 64).all()
        held.append(out)
        del replay


@pytest.mark.gpu
def test_graphs_equal_calls_on_cuda(tiny_llama: Path) -> None:
    with torch.inference_mode():
        model = Model.load(tiny_llama, torch.device("cuda"), torch.float32)
        hidden = torch.randn(8, 2, model.config.hidden_size, device="cuda")
        replayed = [step(model, hidden[at], at) for at in range(8)]
        assert model.graphs is not None
        assert not model.graphs.are_off
        model.use_graphs(None)
        for at, found in enumerate(replayed):
            assert torch.equal(found, step(model, hidden[at], at))


def test_layers_with_experts_are_called(tmp_path: Path) -> None:
    """Which ones a token has is asked on the host, where a graph has nothing to ask."""
    model = Model.load(save_tiny_model(tmp_path, "qwen3_moe"), torch.device("cpu"), torch.float32)
    model.use_graphs(Played())
    assert [type(half) is CapturedLayer for half in model.halves] == [False, True, False]
