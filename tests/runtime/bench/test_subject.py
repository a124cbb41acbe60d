"""Everybody who is timed reads one model's weights, and is fed the same tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_runs import TINY, silent

from stratakv.runtime.bench import subject as subject_module
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.shapes import SHAPES, Shape
from stratakv.runtime.bench.subject import Subject
from stratakv.runtime.model.packing import Packing, packed_names

OPTIONS = BenchOptions(**TINY)


def places(model: Any) -> list[int]:
    return [weight.data_ptr() for weight in model.parameters()]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.load(OPTIONS, tmp_path_factory.mktemp("subject"), 200, silent)


def test_sequences_of_a_text_begin_apart_and_go_on_at_its_beginning(subject: Subject, tmp_path: Path) -> None:
    of_text = Subject("a text", subject.reference(torch.float32).hf, None, tmp_path, np.arange(1500, dtype=np.uint32))
    assert of_text.tokens(0, 3).tolist() == [0, 1, 2]
    assert of_text.tokens(1, 493).tolist() == [*range(1009, 1500), 0, 1]
    assert of_text.tokens(0, 3200)[1500:3002].tolist() == [*range(1500), 0, 1]


def test_without_a_text_tokens_are_drawn_by_sequence(subject: Subject) -> None:
    first, second = subject.tokens(0, 5000), subject.tokens(1, 5000)
    assert np.array_equal(first[:700], subject.tokens(0, 700))
    assert not np.array_equal(first, second)
    assert (first.dtype, first.min(), first.max()) == (np.uint32, 1, 258)


@pytest.mark.parametrize("is_tied", [False, True])
def test_an_embedding_is_read_at_a_step_where_it_is_the_head(
    is_tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], is_tied=is_tied))
    subject = Subject.load(OPTIONS, tmp_path, 200, silent)
    a_layer = 48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 80 + 2 * 48
    read = 3 * a_layer + 48 + 259 * 48
    assert subject.read_per_step(2) == 2 * read
    assert subject.weights_bytes == 4 * (read + (0 if is_tied else 259 * 48))


def test_rounded_weights_are_beside_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", replace(SHAPES["tiny"], hidden=64, intermediate=96, heads=8))
    made = Subject.load(replace(OPTIONS, dtype="bfloat16"), tmp_path, 200, silent)
    with pytest.raises(ValueError, match="weights=int4 is for a GPU, not cpu"):
        made.with_weights("int4")
    monkeypatch.setattr(subject_module, "require_device", lambda *given: None)
    model = made.with_weights("int4")
    assert (model.weights, made.with_weights("int4")) == ("int4", model)
    packed = Packing("int4").bytes_of(made.model.hf)
    assert made.read_by(model) == packed - 2 * 259 * 64
    assert made.read_by(made.model) == made.read_per_step(2) == made.weights_bytes - 2 * 259 * 64
    numbers = sum(made.model.hf.get_parameter(name).numel() for name in packed_names(made.model.hf))
    assert made.held_bytes == made.weights_bytes + packed - (made.weights_bytes - 2 * numbers)


def test_of_embeddings_by_layer_a_row_is_read_at_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_layers = {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 259}
    shape = replace(
        SHAPES["gemma4-e2b"], layers=6, sharing=1, hidden=48, intermediate=80, heads=2, vocabulary=259,
        more={**SHAPES["gemma4-e2b"].more, **of_layers},
    )  # fmt: skip
    monkeypatch.setitem(SHAPES, "tiny", shape)
    subject = Subject.load(OPTIONS, tmp_path, 200, silent)
    assert subject.read_per_step(4) == subject.weights_bytes - 4 * 259 * 6 * 12


def test_transformers_reads_the_same_weights_and_others_in_another_dtype(subject: Subject) -> None:
    mine, reference = subject.pair(torch.float32)
    assert mine is subject.model
    assert reference is subject.reference(torch.float32)
    assert places(reference.hf) == places(mine.hf)
    assert reference.hf.config._attn_implementation == "sdpa"
    twin, reference = subject.pair(torch.bfloat16)
    assert (twin.dtype, reference.dtype_name, mine.dtype) == (torch.bfloat16, "bfloat16", torch.float32)
    assert places(reference.hf) == places(twin.hf)
    for own, rounded in zip(mine.hf.parameters(), twin.hf.parameters(), strict=True):
        assert torch.equal(own.bfloat16(), rounded)


def test_a_prompt_is_read_alike_in_however_many_pieces(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, tokens = subject.reference(torch.float32), np.stack([subject.tokens(0, 50), subject.tokens(1, 50)])
    with torch.inference_mode():
        expected = reference.hf(torch.from_numpy(tokens.astype(np.int64))).logits[:, -1]
    monkeypatch.setattr(subject_module, "_ROWS", 16)
    cache = reference.new_cache()
    reference.extend(cache, tokens[:, :30])
    torch.testing.assert_close(reference.extend(cache, tokens[:, 30:]), expected)


def test_a_second_dtype_needs_twice_its_room(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("alone", subject.reference(torch.float32).hf, None, tmp_path, None)
    needed = subject.weights_bytes  # in 16 bits, twice
    monkeypatch.setattr(subject_module, "free_memory", lambda _: needed)
    assert subject.has_room_for(torch.bfloat16, OPTIONS)
    monkeypatch.setattr(subject_module, "free_memory", lambda _: needed - 1)
    assert not subject.has_room_for(torch.bfloat16, OPTIONS)
    assert subject.has_room_for(torch.float32, OPTIONS), "it is there"
    subject.reference(torch.bfloat16)
    assert subject.has_room_for(torch.bfloat16, OPTIONS), "it is there by now"


def test_a_model_is_made_once_for_all_that_multiply_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", Shape("llama", 1, 64, 64, 2, 2, 32, 320, 1e4))
    subject = Subject.load(OPTIONS, tmp_path, 200, silent)
    assert subject.with_weights("own") is subject.model
    rounded = subject.with_weights("int8")
    assert rounded is subject.with_weights("int8")
    assert (rounded.weights, subject.model.weights) == ("int8", "own")
    assert rounded.hf is subject.model.hf


def test_weights_that_cannot_be_had_are_refused(subject: Subject) -> None:
    with pytest.raises(ValueError, match=r"weights=int8 needs weights of multiples of 64, not \[48, 48\]"):
        subject.with_weights("int8")
