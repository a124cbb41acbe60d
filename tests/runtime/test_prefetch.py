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

from stratakv.retrieval import IndexParams, make_index
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.layer_cache import TieredLayer
from stratakv.runtime.page_reader import PageReader
from stratakv.runtime.prefetch import Guess, Prefetcher
from stratakv.runtime.workspace import Workspace
from stratakv.storage import PageLayout

PAGE, TOKENS, STEPS, LAYERS = 8, 700, 24, 6
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
    path: Path, *, prefetch: bool, index: str = "spectral", host: int = 200, gpu: int | None = 60
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
    for prefetch in (True, False):
        with runtime_of(tmp_path / str(prefetch), prefetch=prefetch, index=index, host=40, gpu=40) as runtime:
            found[prefetch], counted = decoded(runtime)
            assert (counted["prefetches"] > 0) == prefetch
            assert counted["disk_to_host_bytes"] > 0
    assert torch.equal(found[True], found[False])


def test_guessed_rows_are_read(tmp_path: Path) -> None:
    with runtime_of(tmp_path, prefetch=True) as runtime:
        _, counted = decoded(runtime)
    assert counted["row_hits"] > counted["row_misses"] > 0
    assert 0 < counted["useful_prefetched_bytes"] <= counted["prefetched_bytes"]
    known = counted["useful_prefetched_bytes"] + counted["wasted_prefetched_bytes"]
    assert known == counted["prefetched_bytes"], "of a closed sequence, every byte was useful or wasted"
    assert counted["host_to_gpu_bytes"] >= counted["prefetched_bytes"]


def test_guessed_pages_come_from_disk_without_a_device_pool(tmp_path: Path) -> None:
    with runtime_of(tmp_path, prefetch=True, host=40, gpu=None) as runtime:
        _, counted = decoded(runtime)
    assert counted["prefetched_bytes"] > 0
    assert counted["useful_prefetched_bytes"] > 0


def test_nothing_is_guessed_where_everything_is_near(tmp_path: Path) -> None:
    with runtime_of(tmp_path / "host", prefetch=True, gpu=None) as runtime:
        assert decoded(runtime)[1]["prefetches"] == 0
    with runtime_of(tmp_path / "gpu", prefetch=True, gpu=200) as runtime:
        assert decoded(runtime)[1]["prefetches"] == 0


def test_a_batch_is_guessed_for_sequence_by_sequence(tmp_path: Path) -> None:
    found = {}
    for prefetch in (True, False):
        with runtime_of(tmp_path / str(prefetch), prefetch=prefetch, gpu=80) as runtime:
            engine, sequences = runtime.engine, []
            for start in (0, 40):
                sequences.append(engine.new_sequence())
                engine.prefill(sequences[-1], prompt()[start:])
            found[prefetch] = torch.stack([engine.decode(sequences, [token, token + 1]) for token in range(3, 12)])
            for sequence in sequences:
                sequence.close()
            runtime.store.check_integrity()
    assert torch.equal(found[True], found[False])


def test_an_interrupted_turn_leaves_nothing_under_way(tmp_path: Path) -> None:
    """Roll back to before a prefill while guesses are queued; what follows is as if it had not been."""
    with runtime_of(tmp_path, prefetch=True) as runtime:
        engine = runtime.engine
        sequence = engine.new_sequence()
        engine.prefill(sequence, prompt())
        snapshot = sequence.snapshot()
        first = torch.stack([engine.decode([sequence], [token])[0] for token in range(3, 23)])
        sequence.rollback(snapshot)
        for cache in sequence.layers:
            assert isinstance(cache, TieredLayer)
            assert not cache.lookahead._guesses
        again = torch.stack([engine.decode([sequence], [token])[0] for token in range(3, 23)])
        sequence.close()
    torch.testing.assert_close(again, first)


def guess(query: Callable[[], torch.Tensor]) -> Guess:
    """About a layer of 100 pages that are never read: each of these tests ends in `query`."""
    store = store_on(None, LAYOUT, host=1)
    reader = PageReader(store, Workspace(LAYOUT, 0, torch.device("cpu")), np.arange(100), lambda pids: None)
    index = make_index("window", IndexParams(page_size=PAGE, sink=8, local=16))
    return Guess(query, index, None, reader, 96, None)


def test_a_failure_that_is_not_the_stores_reaches_the_caller() -> None:
    prefetcher = Prefetcher()

    def broken() -> torch.Tensor:
        raise ZeroDivisionError("of the query")

    first = guess(broken)
    prefetcher.submit("link", first)
    first.ended.wait()
    with pytest.raises(ZeroDivisionError, match="of the query"):
        prefetcher.submit("link", guess(broken))
    prefetcher.close()


def test_a_cancelled_guess_is_not_begun() -> None:
    prefetcher, holding, seen = Prefetcher(), threading.Event(), []

    def hold() -> torch.Tensor:
        holding.wait()
        raise ZeroDivisionError

    def begin() -> torch.Tensor:
        seen.append("begun")
        raise ZeroDivisionError

    first, second = guess(hold), guess(begin)
    prefetcher.submit("link", first)
    prefetcher.submit("link", second)
    second.cancel()
    holding.set()
    second.cancel(wait=True)
    assert not seen
    counters = second.reader.store.counters
    assert (counters.prefetches, counters.prefetches_cancelled) == (1, 1)
    prefetcher.close()


def test_guessing_leaves_the_computing_threads_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with runtime_of(tmp_path, prefetch=True) as runtime:
        assert decoded(runtime)[1]["prefetches"] > 0
    assert torch.get_num_threads() == before
