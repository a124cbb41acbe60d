"""What an index keeps of the pages stands in for them: while they are cold, ranking reads none of them.

Index states are the summaries of cold pages (boxes, codes, landmarks). They are kept in memory, saved with the
session and restored with it. The store counts what it reads from disk, which shows that nothing else is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCABULARY

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.sessions import session
from stratakv.storage import PageLayout, TieredStore

PAGE, TOKENS, LAYERS = 8, 1000, 3
NUM_PAGES = TOKENS // PAGE
LAYOUT = PageLayout(num_heads=2, page_size=PAGE, head_dim=8, dtype="float32")
HOST_GB = (Workspace.bytes_for(LAYOUT, 512) + LAYERS * 20 * LAYOUT.page_bytes) / 1e9
"""A workspace and 20 pages a layer, of 125."""
INDEXES = ["bounds", "leoam", "spectral", "shadowkv", "magicpig"]


def load(model: Path, folder: Path, index: str) -> Runtime:
    kv = KVConfig(
        prefetch="off",
        path=folder,
        index=index,
        budget=96,
        sink=8,
        local=16,
        page_size=PAGE,
        host_gb=HOST_GB,
        disk_gb=0.1,
    )
    return Runtime.load(model, dtype="float32", kv=kv)


def read_and_save(model: Path, folder: Path, index: str) -> np.ndarray:
    """Returns the tokens read."""
    tokens = np.random.default_rng(3).integers(3, VOCABULARY, TOKENS).astype(np.uint32)
    with load(model, folder, index) as runtime:
        sequence = runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, tokens, want_logits=False)
        session.save(runtime.engine, sequence, "text", {})
    return tokens


def disk_counts(runtime: Runtime) -> tuple[int, int]:
    counters = runtime.store.counters
    return counters.disk_reads, counters.disk_to_host_bytes


class Watch:
    """What decode steps choose, and which of it was in memory just before it was read."""

    def __init__(self, runtime: Runtime, sequence: Sequence, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen: set[int] = set()
        self.asked: set[int] = set()
        self.cold = 0
        gather = TieredStore.gather

        def gathering(store: TieredStore, pids: np.ndarray, *rest: Any, **named: Any) -> None:
            self.asked |= set(pids.tolist())
            self.cold += int((~store.is_resident(pids)).sum())
            gather(store, pids, *rest, **named)

        monkeypatch.setattr(TieredStore, "gather", gathering)
        for layer in sequence.layers:
            assert isinstance(layer, TieredLayer)
            layer.watch = self._note

    def _note(self, layer: TieredLayer, step: Step) -> None:
        assert step.ids is not None
        self.chosen |= set(layer.pids[np.unique(step.ids * step.unit // PAGE)].tolist())


@pytest.mark.parametrize("index", INDEXES)
def test_only_chosen_pages_are_read_from_disk(
    index: str, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_and_save(tiny_llama, tmp_path, index)
    with load(tiny_llama, tmp_path, index) as runtime:
        sequence, _, computed = session.load(runtime.engine, "text")
        assert computed == 0
        assert disk_counts(runtime) == (0, 0), "a state was restored by reading pages"
        before = 0
        for step in range(PAGE + 1):  # one of them fills a page, which is then summarised
            watch = Watch(runtime, sequence, monkeypatch)
            runtime.engine.decode([sequence], [5])
            reads, moved = disk_counts(runtime)
            assert watch.asked == watch.chosen, "pages were read that were not chosen"
            assert reads - before == watch.cold
            assert moved == reads * runtime.store.layout.page_bytes
            if step == 0:
                assert reads == len(watch.chosen), "a cold page was not read, or read twice"
                assert 0 < reads < LAYERS * NUM_PAGES
            monkeypatch.undo()
            before = reads
        assert sequence.num_sealed == TOKENS + PAGE
        runtime.store.check_integrity()


def test_another_index_reads_every_page(tmp_path: Path, tiny_llama: Path) -> None:
    """The saved summaries are not its own: it makes them anew, and one that learns reads a sample before."""
    read_and_save(tiny_llama, tmp_path, "bounds")
    with load(tiny_llama, tmp_path, "leoam") as runtime:
        session.load(runtime.engine, "text")
        assert disk_counts(runtime)[0] >= LAYERS * NUM_PAGES


def test_another_conversation_reads_every_page(tmp_path: Path, tiny_llama: Path) -> None:
    """Only a session keeps the summaries: who finds the pages by their tokens reads them to summarise them."""
    tokens = read_and_save(tiny_llama, tmp_path, "bounds")
    with load(tiny_llama, tmp_path, "bounds") as runtime:
        done = runtime.engine.prefill(runtime.engine.new_sequence(), tokens, want_logits=False)
        assert done.num_cached >= TOKENS - PAGE
        assert disk_counts(runtime)[0] >= LAYERS * (NUM_PAGES - 1)
