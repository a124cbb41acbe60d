"""A model with latent attention through the store: one vector a token, which is key and value.

That its logits are transformers' is in `test_families`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, moved, reference_model, save_tiny_model

from stratakv.runtime import KVConfig, Runtime, SessionError
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.sessions import session
from stratakv.runtime.sessions.saved import describe, store_folders
from stratakv.storage import PageLayout
from stratakv.storage.page import page_key

PAGE, BUDGET = 8, 96
TURNS = (300, 45)
TOKENS = np.random.default_rng(5).integers(3, VOCABULARY, sum(TURNS) + 40).astype(np.uint32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved(save_tiny_model(tmp_path_factory.mktemp("latent"), "glm4_moe_lite", max_position_embeddings=1024), 0.3)


def load(model: Path, path: Path, index: str = "bounds", **changes: Any) -> Runtime:
    kv: dict[str, Any] = {"budget": BUDGET, "sink": 8, "local": 16, "page_size": PAGE, "host_gb": 0.1, "disk_gb": 0.1}
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=path, index=index, **{**kv, **changes}))


def read(runtime: Runtime) -> tuple[Sequence, torch.Tensor]:
    """A conversation of two turns, and all its logits."""
    sequence, found, start = runtime.engine.new_sequence(), [], 0
    for length in TURNS:
        found.append(runtime.engine.prefill(sequence, TOKENS[start : start + length]).logits)
        start += length
    return sequence, torch.stack([*found, *decoded(runtime, sequence, 9)])


def decoded(runtime: Runtime, sequence: Sequence, count: int) -> list[torch.Tensor]:
    tokens = TOKENS[len(sequence.tokens) :][:count]
    return [runtime.engine.decode([sequence], [int(token)])[0] for token in tokens]


def test_where_pages_lie_changes_no_bit_and_damage_is_found(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load(model, tmp_path / "whole", disk_gb=0) as runtime:
        layout = runtime.store.layout
        assert (layout.sides, layout.head_dim, layout.value_dim) == (1, 40, 32)
        expected, chunk = read(runtime)[1], runtime.engine.chunk
    page = 3 * layout.page_bytes / 1e9
    gpu = Workspace.bytes_for(layout, chunk) / 1e9 + 9 * page
    with load(model, tmp_path / "tight", gpu_gb=gpu, host_gb=20 * page, codec="raw") as runtime:
        sequence, found = read(runtime)
        assert torch.equal(found, expected)
        stats = runtime.stats()["tiers"]
        assert all(stats[tier]["page_reads"] > 0 for tier in ("gpu", "host", "disk"))
        chain = sequence.chains[3]
        runtime.store.flush()
        runtime.store.check_integrity()
    (data,) = (tmp_path / "tight").glob("*/data.mdb")
    with lmdb.open(str(data.parent), max_dbs=8, map_size=1 << 30) as file, file.begin(write=True) as transaction:
        pages = file.open_db(b"pages", transaction)
        record = bytearray(transaction.get(page_key(1, chain), db=pages))
        record[-1] ^= 1
        transaction.put(page_key(1, chain), bytes(record), db=pages)
    with load(model, tmp_path / "tight") as runtime:  # all of the prompt is there but for a page that is damaged
        with caplog.at_level(logging.WARNING, "stratakv"):
            _, found = read(runtime)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert runtime.store.counters.pages_recomputed == 1
        assert "(layer 1, tokens 24-31) was damaged" in caplog.text
        runtime.store.check_integrity()


def test_a_saved_conversation_and_a_fork_go_on_as_it_would_have(model: Path, tmp_path: Path) -> None:
    with load(model, tmp_path, "spectral") as runtime:
        sequence, _ = read(runtime)
        session.save(runtime.engine, sequence, "kept", {})
        fork = runtime.engine.fork(sequence)
        expected = torch.stack(decoded(runtime, sequence, 20))
        assert torch.equal(torch.stack(decoded(runtime, fork, 20)), expected)
    with load(model, tmp_path, "spectral") as runtime:
        sequence, _, _ = session.load(runtime.engine, "kept")
        assert torch.equal(torch.stack(decoded(runtime, sequence, 20)), expected)
        other = runtime.engine.new_sequence()
        assert runtime.engine.prefill(other, TOKENS[: TURNS[0]]).num_computed < 2 * PAGE


def test_a_store_of_another_layout_is_another_store(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of other tokens, or such as hold values beside keys, are never read for these."""
    with load(model, tmp_path) as runtime:
        session.save(runtime.engine, read(runtime)[0], "kept", {})
    (own,) = store_folders(tmp_path)
    said = describe(own)["layout"]
    assert said.pop("value_dim") == 32
    with load(model, tmp_path, page_size=16) as runtime:
        assert runtime.sessions() == []
    with monkeypatch.context() as before:
        before.setattr(
            PageLayout, "stated", lambda layout: {name: said[name] for name in asdict(layout) if name in said}
        )
        with load(model, tmp_path) as runtime, pytest.raises(SessionError, match="no session 'kept'"):
            session.load(runtime.engine, "kept")
    assert len(store_folders(tmp_path)) == 3
    with load(model, tmp_path) as runtime:
        sequence, _, computed = session.load(runtime.engine, "kept")
        assert (len(sequence.tokens), computed) == (sum(TURNS) + 9, 0)


@pytest.mark.parametrize("index", ["bounds", "leoam", "magicpig", "oracle", "spectral"])
def test_an_index_reads_within_its_budget_and_all_if_it_may(model: Path, tmp_path: Path, index: str) -> None:
    with torch.inference_mode():
        expected = reference_model(model)(torch.from_numpy(TOKENS[:-1].astype(np.int64))[None]).logits[0, -1]
    for budget in (BUDGET, 1000):
        with load(model, tmp_path, index, budget=budget) as runtime:
            sequence = runtime.engine.new_sequence()
            runtime.engine.prefill(sequence, TOKENS[:-2])
            (logits,) = decoded(runtime, sequence, 1)
            off = float((logits - expected).abs().max() / expected.abs().max())
            assert all(layer.tokens_read <= budget for layer in tiered_layers(sequence.layers))
            assert (off < 1e-4) == (budget == 1000)


def test_an_index_that_reads_values_alone_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'shadowkv' reads values without their keys, and this model's keys contain"):
        load(model, tmp_path, "shadowkv")
