"""Prefill and decode either append all of their tokens or leave the sequence as it was, whoever interrupts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.errors import ConversationError
from stratakv.runtime.api.progress import Progress
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import CapacityError

PAGE, CHUNK, SPAN, BUDGET = 8, 16, 48, 48


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("kv")
    kv = KVConfig(
        path=folder, index="bounds", budget=BUDGET, sink=8, local=8, page_size=PAGE, disk_gb=0.1, host_gb=0.05
    )
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        yield runtime
        runtime.store.check_integrity()


@pytest.fixture(scope="module")
def engine(runtime: Runtime) -> Engine:
    """Of short spans."""
    return spanning(runtime, SPAN)


def spanning(runtime: Runtime, span: int) -> Engine:
    own = runtime.engine
    workspace = Workspace(own.store.layout, span, own.model.device, own.turns)
    return Engine(own.model, own.store, list(own.indexes.values()), own.config, workspace, CHUNK)


def text(seed: int, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.uint32)


def read(engine: Engine, tokens: np.ndarray, **how: Any) -> Sequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, tokens, **how)
    return sequence


def held(sequence: Sequence) -> list[Any]:
    layers = [(layer.pids.tolist(), layer.pages.tail_copy().tolist()) for layer in tiered_layers(sequence.layers)]
    return [sequence.tokens.tolist(), sequence.chains.copy(), layers]


# Prefill


def test_the_length_of_a_span_changes_no_bit(runtime: Runtime) -> None:
    """Rows go in chunks on the same grid of positions."""
    found = []
    for span in (CHUNK, SPAN, 1000):
        engine = spanning(runtime, span)
        sequence = read(engine, text(0, 21), reuse=False)
        found.append(engine.prefill(sequence, text(1, 60), reuse=False).logits)
    assert found[0] is not None
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("want_logits", [True, False])
def test_a_prompt_that_the_store_knows_is_computed_only_for_its_logits(engine: Engine, *, want_logits: bool) -> None:
    tokens = text(2, 12 * PAGE)
    first = read(engine, tokens)
    again = engine.new_sequence()
    done = engine.prefill(again, tokens, want_logits=want_logits)
    computed = PAGE if want_logits else 0
    assert (done.num_cached, done.num_computed) == (len(tokens) - computed, computed)
    assert (done.logits is not None) == want_logits
    assert again.chains == first.chains


def test_reading_tells_how_far_it_is(engine: Engine) -> None:
    seen: list[Progress] = []
    read(engine, text(3), on_progress=seen.append)
    assert {progress.total for progress in seen} == {100}
    processed = [progress.processed for progress in seen]
    assert processed == sorted(processed)
    assert processed[-1] == 100
    assert len(processed) == 3 * 7, "after each chunk in each layer"


def test_no_tokens_are_refused(engine: Engine) -> None:
    sequence = engine.new_sequence()
    with pytest.raises(ValueError, match="prefill needs at least one token"):
        engine.prefill(sequence, text(0, 0))
    with pytest.raises(ValueError, match="decode_known needs at least one token"):
        engine.decode_known(sequence, text(0, 0))


def test_an_interrupted_reading_leaves_the_sequence_and_goes_on_from_there(engine: Engine) -> None:
    sequence = read(engine, text(4, 20))
    before = held(sequence)

    def stop(progress: Progress) -> None:
        if progress.processed > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.prefill(sequence, text(5), on_progress=stop)
    assert held(sequence) == before
    done = engine.prefill(sequence, text(5))
    assert done.num_cached == 64 - 20, "the first span was sealed"
    assert sequence.num_tokens == 120


def test_a_callback_may_not_call_back(engine: Engine) -> None:
    sequence, other = engine.new_sequence(), read(engine, text(6, 20))

    def call_back(_: Progress) -> None:
        engine.prefill(other, text(6, 9))

    with pytest.raises(ConversationError, match="in use by the call that is being answered"):
        engine.prefill(sequence, text(7), on_progress=call_back)
    assert (sequence.num_tokens, other.num_tokens) == (0, 20)
    with engine.turn(), pytest.raises(ConversationError, match="in use"):
        engine.decode([other], [3])


# Decode


def test_a_step_reads_no_more_than_the_budget(engine: Engine) -> None:
    sequences, steps = [read(engine, text(8)), read(engine, text(9, 5))], engine.num_steps
    logits = engine.decode(sequences, [7, 9])
    assert logits.shape == (2, VOCABULARY)
    assert [sequence.tokens[-1] for sequence in sequences] == [7, 9]
    assert engine.num_steps == steps + 1
    assert BUDGET - PAGE < engine.tokens_read <= BUDGET


def test_a_step_that_fails_in_one_sequence_happens_in_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one fails, when it seals a page that the first has sealed already."""
    sequences = [read(engine, text(seed, 11 * PAGE - 1)) for seed in (10, 11)]
    before = [held(sequence) for sequence in sequences]

    def full(*_: Any) -> None:
        raise CapacityError("the host tier is full")

    with monkeypatch.context() as patch:
        patch.setattr(sequences[1], "seal", full)
        with pytest.raises(CapacityError):
            engine.decode(sequences, [7, 9])
    assert [held(sequence) for sequence in sequences] == before
    twins = [engine.fork(sequence) for sequence in sequences]
    assert torch.equal(engine.decode(sequences, [7, 9]), engine.decode(twins, [7, 9]))


def test_a_stopwatch_is_entered_when_the_turn_has_come(engine: Engine) -> None:
    asked: list[str] = []

    @contextmanager
    def stopwatch() -> Iterator[None]:
        engine.turns.require()
        asked.append("begun")
        yield
        engine.turns.require()
        asked.append("ended")

    engine.decode([read(engine, text(12, 5))], [3], within=stopwatch())
    assert asked == ["begun", "ended"]


# Sequences


def test_pages_of_generated_tokens_are_shared_by_those_alone_who_read_alike(runtime: Runtime) -> None:
    own, config = runtime.engine, runtime.engine.config
    salts = [
        runtime.reading(replace(config, **changes)).salt
        for changes in ({}, {"budget": 56}, {"local": 16}, {"index": "window"})
    ]
    assert salts[0] == own.salt
    assert len({*salts}) == 4
    assert runtime.reading(replace(config, prefetch="off", host_gb=1.0)).salt == own.salt


def test_a_fork_that_finds_no_room_holds_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = read(engine, text(13))
    taken = engine.store.host.num_filling
    last = type(sequence.layers[-1])
    follow, followed = last.follow, []

    def full(self: Any, other: Any) -> None:
        if self.layer == 2:
            raise CapacityError("the host tier is full")
        follow(self, other)
        followed.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(last, "follow", full)
        with pytest.raises(CapacityError):
            engine.fork(sequence)
    assert len(followed) == 2
    assert all(len(layer.pids) == layer.tail_len == 0 for layer in followed)
    assert engine.store.host.num_filling == taken


def test_what_was_dropped_is_given_up_at_the_next_turn(engine: Engine) -> None:
    sequence = read(engine, text(14))
    engine.pasts.abandoned.append(sequence)
    with engine.turn():
        assert not engine.pasts.abandoned
        assert sequence.num_tokens == 0
