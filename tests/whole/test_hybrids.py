"""Models whose layers are partly recurrent, or without keys of their own: a conversation survives a restart, branches
off, goes back and is found again, and nothing of it is computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, moved, save_tiny_model
from torch import Tensor

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.sessions import session

HYBRIDS = ["lfm2", "qwen3_5_moe_text", "gemma4_text-shared"]
TEXT = np.random.default_rng(3).integers(3, VOCABULARY, 500).astype(np.uint32)
READ = 300
CLOSE = 1e-4
"""Of the largest logit: sums are taken in another order."""


@pytest.fixture(scope="module", params=HYBRIDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moved(save_tiny_model(tmp_path_factory.mktemp(request.param) / "model", request.param), 0.3)


def loaded(folder: Path, **changes: object) -> Runtime:
    kv = KVConfig(path=folder.parent / "kv", host_gb=0.05, disk_gb=0.1, **changes)
    return Runtime.load(folder, dtype="float32", kv=kv)


def read(engine: Engine, sequence: Sequence, tokens: np.ndarray) -> Tensor:
    logits = engine.prefill(sequence, tokens).logits
    assert logits is not None
    return logits


def replied(engine: Engine, sequence: Sequence, token: int, count: int) -> tuple[list[int], Tensor]:
    """So many tokens behind `token`, each the likeliest, and the last logits."""
    tokens, logits = [token], torch.empty(0)
    for _ in range(count):
        logits = engine.decode([sequence], tokens[-1:])[0]
        tokens.append(int(logits.argmax()))
    return tokens, logits


def test_a_conversation_goes_on_wherever_it_is_taken_up(folder: Path) -> None:
    """The budget is below the context: an index chooses in layers that attend, states are what they are."""
    settings = {"index": "bounds", "budget": 160}
    with loaded(folder, **settings) as runtime:
        engine = runtime.engine
        sequence = engine.new_sequence()
        first = int(read(engine, sequence, TEXT[:READ]).argmax())
        replied(engine, sequence, first, 9)
        session.save(engine, sequence, "kept", {})
        fork, point = engine.fork(sequence), sequence.snapshot()
        told, logits = replied(engine, sequence, first, 25)
        engine.rollback(sequence, point)  # as after a reply that was broken off
        again, same = replied(engine, sequence, first, 25)
        assert again == told
        assert torch.equal(same, logits)
        replied(engine, sequence, 9, 12)  # what one reads later is nothing to the other
        again, same = replied(engine, fork, first, 25)
        assert again == told
        assert torch.equal(same, logits)
        for one in (sequence, fork):
            one.close()
        runtime.store.check_integrity()
    with loaded(folder, **settings) as runtime:
        engine = runtime.engine
        sequence, _, computed = session.load(engine, "kept")
        assert computed == 0
        again, same = replied(engine, sequence, first, 25)
        assert again == told
        assert torch.equal(same, logits)
        assert engine.prefill(sequence, TEXT[READ:]).num_computed == len(TEXT) - READ


def test_a_prompt_read_again_is_found_with_the_state_at_its_last_page(folder: Path) -> None:
    with loaded(folder, index="dense") as runtime:
        engine = runtime.engine
        one, other, longer = (engine.new_sequence() for _ in range(3))
        backwards = TEXT[::-1].copy()
        expected = read(engine, one, backwards[:READ])
        found = engine.prefill(other, backwards[:READ])
        assert found.num_cached == READ // 16 * 16
        assert found.logits is not None
        assert torch.equal(found.logits, expected)
        found = engine.prefill(longer, backwards)
        assert found.num_cached == READ // 16 * 16
        whole = engine.prefill(engine.new_sequence(), backwards, reuse=False).logits
        assert whole is not None
        assert found.logits is not None
        assert (found.logits - whole).abs().max() <= CLOSE * whole.abs().max()


def test_pieces_steps_and_batches_give_what_one_piece_gives(folder: Path) -> None:
    with loaded(folder, index="dense") as runtime:
        engine = runtime.engine
        one, pieces, known, lone = (engine.new_sequence() for _ in range(4))
        engine.prefill(one, TEXT[:400], reuse=False)
        for part in np.split(TEXT[:400], [1, 40, 41, 105, 233]):
            engine.prefill(pieces, part, reuse=False)
        engine.prefill(known, TEXT[:370], reuse=False)
        engine.decode_known(known, TEXT[370:400])
        engine.prefill(lone, TEXT[:77], reuse=False)
        fork = engine.fork(lone)
        for token in TEXT[400:403].tolist():
            batch = engine.decode([one, pieces, known, lone], [token] * 4)
            for row in (1, 2):
                assert (batch[row] - batch[0]).abs().max() <= CLOSE * batch[0].abs().max()
            assert (batch[3] - engine.decode([fork], [token])[0]).abs().max() <= CLOSE * batch[3].abs().max()


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_a_step_that_fails_leaves_every_state_as_it_was(
    compiled: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", compiled)
    with loaded(folder, index="dense") as runtime:
        engine = runtime.engine
        sequence = engine.new_sequence()
        engine.prefill(sequence, TEXT[:100], reuse=False)
        twin = engine.fork(sequence)
        with monkeypatch.context() as patch:
            if engine.compiled is None:
                patch.setattr(engine.model, "step_logits", lambda hidden: 1 / 0)
            else:
                patch.setattr(engine.compiled, "_work", lambda some: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.decode([sequence], [5])
        assert torch.equal(engine.decode([sequence], [5]), engine.decode([twin], [5]))
