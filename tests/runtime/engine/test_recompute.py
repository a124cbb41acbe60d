"""A damaged page is made again from its tokens and the pages before it, as a prefill would have made it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import read_back
from tiny_models import VOCABULARY, moved, save_tiny_model
from torch import Tensor

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.recompute import recompute
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.sharing import SharingPages
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.storage.disk.lmdb_file import STATES

PAGE = 8
LENGTH = 12 * PAGE


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(
        path=tmp_path_factory.mktemp("kv"), index="window", budget=32, sink=0, local=8, page_size=PAGE, host_gb=0.05,
        disk_gb=0.1,
    )  # fmt: skip
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        yield runtime
        runtime.store.check_integrity()


def made(runtime: Runtime, seed: int, num_read: int = LENGTH) -> Sequence:
    """A text of its own, so many tokens of it read as a prompt and the others one by one."""
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, LENGTH).astype(np.uint32)
    sequence = runtime.engine.new_sequence()
    runtime.engine.prefill(sequence, tokens[:num_read], reuse=False)
    for token in tokens[num_read:].tolist():
        runtime.engine.decode([sequence], [token])
    runtime.store.flush()
    return sequence


def pages(runtime: Runtime, sequence: Sequence, layer: int) -> Tensor:
    """fp32 `[n, numbers]`."""
    return read_back(runtime.store, tiered_layers(sequence.layers)[layer].pids).view(torch.float32)


def again(runtime: Runtime, sequence: Sequence, layer: int, page: int) -> None:
    with runtime.engine.turn():
        pid = int(tiered_layers(sequence.layers)[layer].pids[page])
        fresh = runtime.engine.pasts.without_pages
        recompute(runtime.model, runtime.store, sequence.layers, fresh, 0, layer, [pid])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_page_is_what_it_was_and_nothing_behind_it_was_read(
    runtime: Runtime, layer: int, caplog: pytest.LogCaptureFixture
) -> None:
    sequence, page = made(runtime, layer), 7
    before, recomputed = pages(runtime, sequence, layer), runtime.store.counters.pages_recomputed
    for its in tiered_layers(sequence.layers):
        slots = runtime.store._table.host_slot[its.pids[page:]]
        runtime.store.host.data[torch.from_numpy(slots)] = 0xFF  # no number
    with caplog.at_level(logging.WARNING, "stratakv"):
        again(runtime, sequence, layer, page)
    found = pages(runtime, sequence, layer)
    torch.testing.assert_close(found[: page + 1], before[: page + 1], rtol=1e-4, atol=1e-4)
    assert found[page + 1 :].isnan().all()
    assert runtime.store.counters.pages_recomputed == recomputed + 1
    (record,) = caplog.records
    assert record.message.endswith(f"(layer {layer}, tokens 56-63) was damaged: recomputing it")
    runtime.store.flush()
    sequence.close()


def test_generated_tokens_are_read_exactly(runtime: Runtime) -> None:
    """Decode had read a window of the text for them."""
    exact, sequence = made(runtime, 5), made(runtime, 5, 7 * PAGE)
    expected, was = pages(runtime, exact, 2)[7], pages(runtime, sequence, 2)[7]
    assert (was - expected).abs().max() > 0.1
    again(runtime, sequence, 2, 7)
    torch.testing.assert_close(pages(runtime, sequence, 2)[7], expected, rtol=1e-4, atol=1e-4)
    for each in (exact, sequence):
        each.close()


def test_a_layer_in_whose_midst_its_sources_page_is_made_again_goes_on_with_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of layers for prefill take turns in the same memory."""
    monkeypatch.setattr("stratakv.runtime.model.model.multiplies_slowly", lambda device, dtype: True)
    folder = moved(save_tiny_model(tmp_path / "model", "gemma4_text-shared"), 0.3)
    kv = KVConfig(path=tmp_path / "kv", index="dense", page_size=PAGE, host_gb=0.05, disk_gb=0)
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, LENGTH).astype(np.uint32)
    with Runtime.load(folder, dtype="bfloat16", kv=kv) as runtime:
        engine, extend, logits = runtime.engine, SharingPages.extend, []
        assert runtime.model.prefill_dtype is torch.float32

        def damaged(layer: SharingPages, *rows: Any) -> Tensor:
            source = runtime.model.sources[layer.layer]
            recompute(
                runtime.model, runtime.store, sequence.layers, engine.pasts.without_pages, 0, source,
                [int(layer.pids[3])],
            )  # fmt: skip
            return extend(layer, *rows)

        for its in (extend, damaged):
            monkeypatch.setattr(SharingPages, "extend", its)
            sequence = engine.new_sequence()
            logits.append(engine.prefill(sequence, tokens, reuse=False).logits)
        assert runtime.store.counters.pages_recomputed == 1
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["qwen3_5_moe_text", "gemma4_text-shared"])
def test_layers_without_pages_go_through_the_text_from_the_nearest_state(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or from its beginning where there is none; those of the sequence stay where they are."""
    folder = moved(save_tiny_model(tmp_path / "model", family), 0.3)
    kv = KVConfig(path=tmp_path / "kv", index="dense", state_every=64, host_gb=0.05, disk_gb=0.1)
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, 330).astype(np.uint32)
    passed: list[int] = []
    with Runtime.load(folder, dtype="float32", kv=kv) as runtime:
        sequence, twin = runtime.engine.new_sequence(), runtime.engine.new_sequence()
        for each in (sequence, twin):
            runtime.engine.prefill(each, tokens, reuse=False)
        runtime.store.flush()
        layer = tiered_layers(sequence.layers)[-1].layer
        disk, pids = runtime.store.disk, tiered_layers(sequence.layers)[-1].pids
        assert disk is not None
        before = read_back(runtime.store, pids)
        embed = runtime.model.embed_wide

        def embed_wide(tokens: np.ndarray) -> Tensor:
            passed.append(len(tokens))
            return embed(tokens)

        monkeypatch.setattr(runtime.model, "embed_wide", embed_wide)
        for chains, expected in ((sequence.chains, [48, 16, 32, 16]), ([], [112, 16, 96, 16])):
            if not chains:
                disk._records.delete(STATES, sequence.chains)
            for page in (7, 14):
                slots = runtime.store._table.host_slot[pids[page:]]
                runtime.store.host.data[torch.from_numpy(slots)] = 0xFF  # no number
            passed.clear()
            with runtime.engine.turn():
                recompute(
                    runtime.model, runtime.store, sequence.layers, runtime.engine.pasts.without_pages, 0, layer,
                    [int(pids[14]), int(pids[7])],
                )  # fmt: skip
            assert passed == [*expected]
            found = read_back(runtime.store, pids).view(torch.float32)
            for page in (7, 14):
                torch.testing.assert_close(found[page], before.view(torch.float32)[page], rtol=1e-4, atol=1e-4)
            runtime.store.flush()
        slots = runtime.store._table.host_slot[pids]
        runtime.store.host.data[torch.from_numpy(slots)] = before
        step, same = (runtime.engine.decode([each], [5]) for each in (sequence, twin))
        assert torch.equal(step, same)
