"""What a prompt leaves besides pages serves whoever begins with the same tokens later: states, and what an index
learned from queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.tiered import LEARNED_EVERY, TieredLayer

TOKENS = np.random.default_rng(5).integers(3, VOCABULARY, LEARNED_EVERY + 190).astype(np.uint32)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)


def settings(folder: Path, **changes: object) -> KVConfig:
    return KVConfig(path=folder, index="spectral", budget=144, state_every=128, **changes)


def read(engine: Engine, tokens: np.ndarray) -> tuple[Sequence, int, torch.Tensor]:
    """The sequence, how many of its tokens were reused, and the logits after one more token."""
    sequence = engine.new_sequence()
    done = engine.prefill(sequence, tokens)
    return sequence, done.num_cached, engine.decode([sequence], [7])[0]


def states(sequence: Sequence) -> list[dict[str, torch.Tensor]]:
    return [c.index.export(c.state) for c in sequence.layers if isinstance(c, TieredLayer)]


def same(one: Sequence, other: Sequence, names: set[str]) -> bool:
    pairs = zip(states(one), states(other), strict=True)
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in names)


def test_a_prompt_read_again_has_the_same_index(model: Path, tmp_path: Path) -> None:
    """In another process: only its last rows are computed, so its queries are not there to be learned from."""
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        first, cached, expected = read(runtime.engine, TOKENS)
        assert cached == 0
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        again, cached, logits = read(runtime.engine, TOKENS)
        assert cached >= len(TOKENS) - 16
        assert same(again, first, {"moment", "of_keys", "of_queries", "codebooks", "codes", "anchors"})
        assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_prompt_of_whole_pages_read_again_has_the_same_index(tiny_llama: Path, tmp_path: Path) -> None:
    """Its last page is computed again, for the logits; what was learned lies under that very page."""
    whole = TOKENS[: len(TOKENS) // 16 * 16]
    with Runtime.load(tiny_llama, dtype="float32", kv=settings(tmp_path)) as runtime:
        first, *_ = read(runtime.engine, whole)
    with Runtime.load(tiny_llama, dtype="float32", kv=settings(tmp_path)) as runtime:
        again, cached, _ = read(runtime.engine, whole)
        assert cached == len(whole) - 16
        assert same(again, first, {"of_keys", "of_queries", "codebooks"})


def test_another_index_does_not_take_it(model: Path, tmp_path: Path) -> None:
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        first, *_ = read(runtime.engine, TOKENS)
        other = runtime.reading(KVConfig(path=tmp_path, index="spectral:segment=32", budget=144))
        second, cached, _ = read(other, TOKENS)
        assert cached > 0
        assert not same(first, second, {"moment"}), "its own: nothing was learned from queries"


def test_who_leaves_a_prompt_early_goes_on_from_the_state_before(model: Path, tmp_path: Path) -> None:
    other = np.concatenate([TOKENS[:400], TOKENS[:100]])
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        engine, sequence, fresh = runtime.engine, runtime.engine.new_sequence(), runtime.engine.new_sequence()
        read(engine, TOKENS)
        found, expected = engine.prefill(sequence, other), engine.prefill(fresh, other, reuse=False)
        assert found.num_cached == (400 if all(layer.is_paged for layer in sequence.layers) else 384)
        assert found.logits is not None
        assert expected.logits is not None
        assert (found.logits - expected.logits).abs().max() <= 1e-4 * expected.logits.abs().max()


def test_a_session_remembers_what_was_learned(model: Path, tmp_path: Path) -> None:
    """To the bit, and learns on from there."""
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        chat = runtime.chat()
        chat.send("a" * 700, max_new_tokens=2)
        chat.save("here")
        before = chat.send("b" * 50, max_new_tokens=20)
    with Runtime.load(model, dtype="float32", kv=settings(tmp_path)) as runtime:
        resumed = runtime.chat(session="here")
        assert resumed.send("b" * 50, max_new_tokens=20).tokens == before.tokens
