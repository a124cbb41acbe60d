"""Guesses move bytes, never answers: the same logits with and without, and everything accounted for."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import SMALL
from layer_kv import QUERIES, SIZE, reader_of, spilled
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.lookahead import Lookahead
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.prefetch import Prefetcher
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import PageLayout

PAGE, TOKENS, STEPS, LAYERS = 8, 600, 12, 4
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


@pytest.mark.parametrize("index", ["spectral", "bounds", "leoam", "shadowkv", "magicpig", "oracle", "dense", "tidal"])
def test_answers_are_the_same_with_and_without(index: str, tmp_path: Path) -> None:
    """In three tiers none of which holds the prompt's pages but the last."""
    found = {}
    for prefetch in ("on", "off", "auto") if index == "spectral" else ("on", "off"):
        with runtime_of(tmp_path / prefetch, prefetch=prefetch, index=index, host=40, gpu=40) as runtime:
            found[prefetch], counted = decoded(runtime)
            assert (counted["prefetches"] > 0) == (prefetch != "off")
            assert counted["disk_to_host_bytes"] > 0
    assert all(torch.equal(logits, found["off"]) for logits in found.values())


@pytest.mark.usefixtures("read_by_host")
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


# One layer's guesses


@pytest.fixture
def prefetcher() -> Iterator[Prefetcher]:
    prefetcher = Prefetcher(is_forced=True)
    yield prefetcher
    prefetcher.close()


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[LayerPages]:
    with spilled(tmp_path / "s", 12) as pages:
        yield pages


def lookahead_of(pages: LayerPages, prefetcher: Prefetcher | None) -> Lookahead:
    """Of an index that chooses the first page and the last ones."""
    index = make_index("window", IndexParams(page_size=SIZE, sink=SIZE, local=SIZE))
    return Lookahead(pages, reader_of(pages), index, prefetcher)


def query() -> torch.Tensor:
    return QUERIES[:, 0].unflatten(0, (SMALL.num_heads, -1))


def never() -> torch.Tensor:
    raise AssertionError("there is nothing to bring")


def test_a_guess_is_what_the_index_chooses_and_a_quarter_more(pages: LayerPages, prefetcher: Prefetcher) -> None:
    lookahead = lookahead_of(pages, prefetcher)
    lookahead.guess(query, None, 4 * SIZE)
    (errand,) = lookahead._errands
    errand.ended.wait()
    assert pages.store.is_resident(pages.pids).tolist() == [True] + [False] * 7 + [True] * 4
    assert pages.store.counters.prefetches == 1
    lookahead.guess(query, None, 4 * SIZE)
    assert lookahead._errands == [errand], "all of it is near"


def test_no_query_is_made_where_nothing_is_to_be_brought(pages: LayerPages, prefetcher: Prefetcher) -> None:
    """Nobody guesses, the step reads nearly everything, or everything is near."""
    lookahead_of(pages, None).guess(never, None, 4 * SIZE)
    lookahead = lookahead_of(pages, prefetcher)
    lookahead.guess(never, None, 11 * SIZE + 1)
    pages.store.prefetch(pages.pids, lambda: False)
    lookahead.guess(never, None, 4 * SIZE)
    assert pages.store.counters.prefetches == 0


def test_a_step_makes_what_is_queued_late_and_stopping_waits_for_it(pages: LayerPages, prefetcher: Prefetcher) -> None:
    lookahead = lookahead_of(pages, prefetcher)
    lookahead.guess(query, None, 4 * SIZE)
    (first,) = lookahead._errands
    lookahead.begin_step()
    assert first.is_cancelled
    lookahead.guess(query, None, 9 * SIZE)
    (second,) = lookahead._errands
    lookahead.stop()
    assert second.is_cancelled
    assert second.ended.is_set()
    assert lookahead._errands == []
