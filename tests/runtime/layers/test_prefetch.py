"""Guesses move bytes, never answers: the same logits with and without, and everything accounted for."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import store_on
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.prefetch import Errand, Prefetcher
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import PageLayout

PAGE, TOKENS, STEPS, LAYERS = 8, 600, 16, 6
LAYOUT = PageLayout(num_heads=2, page_size=PAGE, head_dim=8, dtype="float32")


@functools.cache
def model() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stratakv-test-"))
    return save_tiny_model(folder, max_position_embeddings=2048, num_hidden_layers=LAYERS)


def cap_gb(pages_per_layer: int, *, workspace: bool) -> float:
    reserve = Workspace.bytes_for(LAYOUT, 512) if workspace else 0
    return (reserve + LAYERS * pages_per_layer * LAYOUT.page_bytes) / 1e9


@contextmanager
def runtime_of(
    path: Path, *, prefetch: str, index: str = "spectral", host: int = 200, gpu: int | None = 60
) -> Iterator[Runtime]:
    caps: dict[str, Any] = {"host_gb": cap_gb(host, workspace=gpu is None), "disk_gb": 0.1}
    if gpu is not None:
        caps["gpu_gb"] = cap_gb(gpu, workspace=True)
    kv = KVConfig(path=path, index=index, budget=96, sink=8, local=16, page_size=PAGE, prefetch=prefetch, **caps)
    with Runtime.load(model(), dtype="float32", kv=kv) as runtime:
        yield runtime


def prompt() -> np.ndarray:
    return np.random.default_rng(5).integers(3, VOCABULARY, TOKENS).astype(np.uint32)


def decoded(runtime: Runtime) -> tuple[torch.Tensor, dict[str, float]]:
    """Logits of `STEPS` steps after the prompt, and what was counted meanwhile."""
    engine = runtime.engine
    sequence = engine.new_sequence()
    logits = engine.prefill(sequence, prompt()).logits
    runtime.store.flush()
    assert logits is not None
    found, before = [], runtime.store.counters.as_dict()
    for _ in range(STEPS):
        logits = engine.decode([sequence], [int(logits.argmax())])[0]
        found.append(logits)
    sequence.close()
    after = runtime.store.counters.as_dict()
    runtime.store.check_integrity()
    return torch.stack(found), {name: after[name] - before[name] for name in after}


@pytest.mark.parametrize("index", ["spectral", "bounds", "leoam", "shadowkv", "magicpig", "oracle", "dense"])
def test_answers_are_the_same_with_and_without(index: str, tmp_path: Path) -> None:
    """In three tiers none of which holds the prompt's pages but the last."""
    found = {}
    for prefetch in ("on", "off", "auto"):
        with runtime_of(tmp_path / prefetch, prefetch=prefetch, index=index, host=40, gpu=40) as runtime:
            found[prefetch], counted = decoded(runtime)
            assert (counted["prefetches"] > 0) == (prefetch != "off")
            assert counted["disk_to_host_bytes"] > 0
    assert torch.equal(found["on"], found["off"])
    assert torch.equal(found["auto"], found["off"])


def test_guessed_rows_are_read(tmp_path: Path) -> None:
    with runtime_of(tmp_path, prefetch="on") as runtime:
        _, counted = decoded(runtime)
    assert counted["row_hits"] > counted["row_misses"] > 0
    assert 0 < counted["useful_prefetched_bytes"] <= counted["prefetched_bytes"]
    known = counted["useful_prefetched_bytes"] + counted["wasted_prefetched_bytes"]
    assert known == counted["prefetched_bytes"], "of a closed sequence, every byte was useful or wasted"
    assert counted["host_to_gpu_bytes"] >= counted["prefetched_bytes"]


def test_guessed_pages_come_from_disk_without_a_device_pool(tmp_path: Path) -> None:
    with runtime_of(tmp_path, prefetch="on", host=40, gpu=None) as runtime:
        _, counted = decoded(runtime)
    assert counted["prefetched_bytes"] > 0
    assert counted["useful_prefetched_bytes"] > 0


def test_nothing_is_guessed_where_everything_is_near(tmp_path: Path) -> None:
    with runtime_of(tmp_path / "host", prefetch="on", gpu=None) as runtime:
        assert decoded(runtime)[1]["prefetches"] == 0
    with runtime_of(tmp_path / "gpu", prefetch="on", gpu=200) as runtime:
        assert decoded(runtime)[1]["prefetches"] == 0


def test_a_batch_is_guessed_for_sequence_by_sequence(tmp_path: Path) -> None:
    found = {}
    for prefetch in ("on", "off", "auto"):
        with runtime_of(tmp_path / prefetch, prefetch=prefetch, gpu=80) as runtime:
            engine, sequences = runtime.engine, []
            for start in (0, 40):
                sequences.append(engine.new_sequence())
                engine.prefill(sequences[-1], prompt()[start:])
            found[prefetch] = torch.stack([engine.decode(sequences, [token, token + 1]) for token in range(3, 12)])
            for sequence in sequences:
                sequence.close()
            runtime.store.check_integrity()
    assert torch.equal(found["on"], found["off"])
    assert torch.equal(found["auto"], found["off"])


def test_an_interrupted_turn_leaves_nothing_behind(tmp_path: Path) -> None:
    """Roll back to before a turn: nothing is under way, and what another turn reads at its positions is its own."""
    with runtime_of(tmp_path, prefetch="on") as runtime:
        engine = runtime.engine

        def turn(sequence: Sequence, first: int) -> torch.Tensor:
            return torch.stack([engine.decode([sequence], [token])[0] for token in range(first, first + 20)])

        sequence = engine.new_sequence()
        engine.prefill(sequence, prompt()[: 87 * PAGE - 1])  # the next token fills a page
        twin = engine.fork(sequence)
        expected = turn(twin, 20)
        twin.close()
        snapshot = sequence.snapshot()
        turn(sequence, 3)
        sequence.rollback(snapshot)
        for cache in sequence.layers:
            assert isinstance(cache, TieredLayer)
            assert not cache.lookahead._errands
        found = turn(sequence, 20)
        sequence.close()
    torch.testing.assert_close(found, expected)


class Gate:
    """A cancellation that an errand asks about and waits in."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, pids: np.ndarray, is_cancelled: Callable[[], bool]) -> None:
        self.reached.set()
        self.opened.wait()


def errand(work: Callable[[np.ndarray, Callable[[], bool]], None], monkeypatch: pytest.MonkeyPatch) -> Errand:
    """What its store does is `work`."""
    store = store_on(None, LAYOUT, host=1)
    monkeypatch.setattr(store, "prefetch", work)
    return Errand(store, np.arange(3))


def fail(pids: np.ndarray, is_cancelled: Callable[[], bool]) -> None:
    raise ZeroDivisionError("of the store")


def test_a_failure_that_is_not_the_stores_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetcher, first = Prefetcher(), errand(fail, monkeypatch)
    prefetcher.submit(first)
    first.ended.wait()
    with pytest.raises(ZeroDivisionError, match="of the store"):
        prefetcher.submit(errand(fail, monkeypatch))
    prefetcher.close()


def test_a_cancelled_errand_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetcher, gate = Prefetcher(), Gate()
    first, second = errand(gate, monkeypatch), errand(fail, monkeypatch)
    prefetcher.submit(first)
    prefetcher.submit(second)
    gate.reached.wait()
    second.cancel()
    gate.opened.set()
    second.cancel(wait=True)
    assert (first.store.counters.prefetches_cancelled, second.store.counters.prefetches_cancelled) == (0, 1)
    prefetcher.submit(errand(gate, monkeypatch))  # would raise what the second had failed with
    prefetcher.close()
