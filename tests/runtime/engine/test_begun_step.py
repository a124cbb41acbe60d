"""A step that is begun before its tokens are known: they join, or it never was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stratakv.runtime import ConversationError, KVConfig, Runtime
from stratakv.runtime.engine.begun_step import BegunStep
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import GENERATED, Sequence
from stratakv.storage import CapacityError

PAGE = 8
TEXT = np.arange(3, 90, dtype=np.uint32)
LENGTHS = (5 * PAGE - 1, 5 * PAGE, 5 * PAGE + 3)
"""The next token fills a page, opens one, or neither."""


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    kv = KVConfig(
        path=tmp_path_factory.mktemp("kv"), index="bounds", budget=32, sink=8, local=8, page_size=PAGE, disk_gb=0
    )
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        yield runtime.engine
        runtime.store.check_integrity()


@pytest.fixture
def sequences(engine: Engine) -> Iterator[list[Sequence]]:
    made = [engine.new_sequence() for _ in LENGTHS]
    for sequence, length in zip(made, LENGTHS, strict=True):
        engine.prefill(sequence, TEXT[:length], want_logits=False)
    yield made
    for sequence in made:
        sequence.close()


def begun(engine: Engine, sequences: list[Sequence], tokens: list[int]) -> BegunStep:
    return engine._begin(sequences, torch.tensor(tokens))


def held(sequence: Sequence) -> Any:
    return (
        sequence.tokens.tolist(),
        list(sequence.chains),
        [(len(layer.pages.pids), layer.pages.tail_len) for layer in sequence.layers],
    )


def after(engine: Engine, sequences: list[Sequence], tokens: list[list[int]]) -> list[Tensor]:
    """The logits of steps with these tokens."""
    return [engine.decode(sequences, some).clone() for some in tokens]


@pytest.mark.parametrize("stays", [None, [True, False, True], [False, True, False], [False] * 3])
def test_those_whose_token_stays_have_it_and_the_others_never_did(
    stays: list[bool] | None, engine: Engine, sequences: list[Sequence]
) -> None:
    kept = stays or [True] * 3
    twins = [engine.fork(sequence) for sequence in sequences]
    before = [held(sequence) for sequence in sequences]
    with engine.turn(), torch.inference_mode():
        step = begun(engine, sequences, [40, 41, 42])
        assert [sequence.num_tokens for sequence in sequences] == list(LENGTHS)
        step.settle([40, 41, 42], stays)
        step.undo()
    for one, was, is_kept, token in zip(sequences, before, kept, (40, 41, 42), strict=True):
        assert held(one) == was or is_kept
        assert one.tokens.tolist() == was[0] + [token] * is_kept
        assert one.origins[-1] == GENERATED or not is_kept
    for twin, is_kept, token in zip(twins, kept, (40, 41, 42), strict=True):
        if is_kept:
            engine.decode([twin], [token])
    for one, twin in zip(sequences, twins, strict=True):
        assert held(one) == held(twin)
    following = [[50 + number, 51, 52] for number in range(10)]
    for mine, its in zip(after(engine, sequences, following), after(engine, twins, following), strict=True):
        assert torch.equal(mine, its)
    for twin in twins:
        twin.close()


def test_a_page_is_not_published_before_its_last_token_is_known_to_stay(
    engine: Engine, sequences: list[Sequence]
) -> None:
    first, store = sequences[0], engine.store
    named = first.name_pages(np.array([40], dtype=np.uint32), GENERATED)
    for stays in (False, True):
        with engine.turn(), torch.inference_mode():
            step = begun(engine, [first], [40])
            assert store.num_known([*first.chains, *named.chains], [0]) == 4
            step.settle([40], [stays])
        assert store.num_known([*first.chains[:4], *named.chains], [0]) == 4 + stays


def test_what_fails_leaves_every_sequence_as_it_was(
    engine: Engine, sequences: list[Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [held(sequence) for sequence in sequences]

    def fails(*_: Any) -> Any:
        raise CapacityError("full")

    with engine.turn(), torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "step_logits", fails)
            patch.setattr(engine, "compiled", None)
            with pytest.raises(CapacityError):
                begun(engine, sequences, [40, 41, 42])
        assert [held(sequence) for sequence in sequences] == before
        for layer in (0, 2):
            step = begun(engine, sequences, [40, 41, 42])
            with monkeypatch.context() as patch:
                patch.setattr(sequences[0].layers[layer], "seal", fails)
                with pytest.raises(CapacityError):
                    step.settle([40, 41, 42])
            assert [held(sequence) for sequence in sequences] == before


def test_a_sequence_that_another_call_has_changed_gets_no_token(engine: Engine, sequences: list[Sequence]) -> None:
    last = sequences[2]
    with engine.turn(), torch.inference_mode():
        step = begun(engine, sequences, [40, 41, 42])
        last.commit(last.name_pages(np.array([9], dtype=np.uint32), GENERATED))
        with pytest.raises(ConversationError, match="changed"):
            step.settle([40, 41, 42])
    assert [sequence.num_tokens for sequence in sequences] == list(LENGTHS)
