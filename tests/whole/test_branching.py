"""Layers that keep a state in place of pages, in conversations that begin alike: another one goes on from the newest
state below what they share, and says what it would have said without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, moved, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.sessions import session

FAMILIES = ["lfm2", "qwen3_5_moe_text", "gemma3_text", "gemma4_text"]
EVERY, SHARED = 1024, 3000
TEXT = np.random.default_rng(3).integers(3, VOCABULARY, 3100).astype(np.uint32)
OTHER = np.concatenate([TEXT[:SHARED], TEXT[:120]])


def loaded(folder: Path) -> Runtime:
    kv = KVConfig(path=folder.parent / "kv", host_gb=0.05, disk_gb=0.1, index="bounds", budget=256)
    return Runtime.load(folder, dtype="float32", kv=kv)


def replied(engine: Engine, sequence: Sequence, token: int) -> list[int]:
    """64 tokens behind `token`, each the likeliest."""
    tokens = [token]
    for _ in range(64):
        tokens.append(int(engine.decode([sequence], tokens[-1:])[0].argmax()))
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_another_conversation_goes_on_from_the_newest_state_that_both_share(family: str, tmp_path: Path) -> None:
    folder = moved(save_tiny_model(tmp_path / "model", family), 0.3)
    with loaded(folder) as runtime:
        engine, first = runtime.engine, runtime.engine.new_sequence()
        assert engine.prefixes.state_every == EVERY

        def stop(progress: object) -> None:
            if first.num_tokens >= EVERY:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.prefill(first, TEXT, on_progress=stop)
        assert engine.prefill(first, TEXT).num_cached == EVERY, "what was broken off is gone on with"
        stats, disk = runtime.stats(), runtime.store.disk
        assert (stats["states"], stats["state_every"]) == (4, EVERY), "at three places, and at the end"
        runtime.store.flush()
        assert disk is not None
        assert sum(disk.state_sizes().values()) <= sum(size for _, size in disk.page_sizes()) / 4
    with loaded(folder) as runtime:
        engine, second, fresh = runtime.engine, runtime.engine.new_sequence(), runtime.engine.new_sequence()
        found, expected = engine.prefill(second, OTHER), engine.prefill(fresh, OTHER, reuse=False)
        assert SHARED - found.num_cached <= EVERY + 16
        assert found.logits is not None
        assert expected.logits is not None
        assert torch.equal(found.logits, expected.logits)
        session.save(engine, second, "second", {})
        token = int(found.logits.argmax())
        told = replied(engine, second, token)
        assert replied(engine, fresh, token) == told
    with loaded(folder) as runtime:
        again, _, computed = session.load(runtime.engine, "second")
        assert computed == 0
        assert replied(runtime.engine, again, token) == told
        runtime.store.check_integrity()
