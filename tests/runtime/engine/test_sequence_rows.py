"""What a step reads and where, told for all layers at once: pages that have moved, and what the store is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import tiered_layers

PAGE = 8
SETTINGS = {"budget": 96, "sink": 8, "local": 16, "page_size": PAGE}


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "1")


def opened(model: Path, path: Path, index: str) -> Runtime:
    kv = KVConfig(index=index, path=str(path), host_gb=0.05, disk_gb=0.1, **SETTINGS)
    return Runtime.load(model, dtype="float32", kv=kv)


def prompted(engine: Engine, length: int) -> Sequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, np.random.default_rng(length).integers(3, VOCABULARY, length).astype(np.uint32))
    return sequence


def displace(runtime: Runtime, sequence: Sequence, layer: int) -> None:
    """Have all pages of a layer leave host memory, and others' bytes where they were."""
    store = runtime.store
    store.flush()
    pids = tiered_layers(sequence.layers)[layer].pids
    with store.still():
        slots = store._table.host_slot[pids]
        slots = slots[slots >= 0]
        store._residency.evict(store.host, slots)
        store.host.data[torch.from_numpy(slots)] = 0xFF  # no number, whatever the dtype


@pytest.mark.parametrize("index", ["bounds", "spectral"])
def test_a_page_that_has_moved_is_not_read_where_it_was(tiny_llama: Path, tmp_path: Path, index: str) -> None:
    """Between two steps pages go to disk; the next step fetches them, the one after it reads them where they came to
    lie, in another order."""
    found = []
    for is_disturbed in (False, True):
        with opened(tiny_llama, tmp_path / str(is_disturbed), index) as runtime:
            sequence = prompted(runtime.engine, 300)
            logits = []
            for step in range(3 * PAGE):
                if is_disturbed and step % 3 == 1:
                    displace(runtime, sequence, step % len(sequence.layers))
                logits.append(runtime.engine.decode([sequence], [3 + step]))
            assert (runtime.store.counters.disk_reads > 0) is is_disturbed
            runtime.store.check_integrity()
            found.append(torch.stack(logits))
    assert torch.equal(*found)


@pytest.mark.parametrize("index", ["bounds", "spectral", "dense"])
@pytest.mark.parametrize("lengths", [(300,), (5, 131, 40)])
def test_the_store_is_told_of_the_pages_read(
    tiny_llama: Path, tmp_path: Path, index: str, lengths: tuple[int, ...]
) -> None:
    """As many as who watches sees, each used at the last moment, and no other one."""
    with opened(tiny_llama, tmp_path, index) as runtime:
        engine, store = runtime.engine, runtime.store
        sequences = [prompted(engine, length) for length in lengths]
        for token in range(3, 3 + 2 * PAGE):
            watched, seen = [engine.fork(sequence) for sequence in sequences], list[tuple[np.ndarray, Step]]()
            for layer in [layer for sequence in watched for layer in tiered_layers(sequence.layers)]:
                layer.watch = lambda its, step, into=seen: into.append((its.pids, step))
            engine.decode(watched, [token] * len(watched))
            read = [
                pids[np.unique(step.ids * step.unit // PAGE)]
                for pids, step in seen if step.ids is not None
            ]  # fmt: skip
            expected = np.sort(np.concatenate(read)) if read else np.empty(0, dtype=np.int64)
            before, clock = store.counters.host_reads, store._residency.clock
            engine.decode(sequences, [token] * len(sequences))
            assert store.counters.host_reads - before == len(expected)
            used = store.host.page[(store.host.last_use > clock) & (store.host.page >= 0)]
            assert set(expected) <= set(used)
            sealed = {layer.pids[-1] for s in sequences for layer in tiered_layers(s.layers) if len(layer.pids)}
            assert set(used) - set(expected) <= sealed
            tokens_read = [layer.tokens_read for s in sequences for layer in s.layers]
            assert tokens_read == [layer.tokens_read for s in watched for layer in s.layers]
            for sequence in watched:
                sequence.close()
