"""Every supported family, with everything read, equals transformers' own dense model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, FORMS, VOCABULARY, reference_model, save_tiny_model, tolerance

from stratakv.runtime import KVConfig, ModelFileError, Runtime
from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_decode_and_second_turn_equal_transformers(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    reference, close = reference_model(folder), tolerance(family)
    rng = np.random.default_rng(1)
    first, second = rng.integers(3, VOCABULARY, 90), rng.integers(3, VOCABULARY, 45)
    with (
        Runtime.load(folder, dtype="float32", kv=KVConfig(path=tmp_path / "kv", index="dense")) as runtime,
        torch.inference_mode(),
    ):
        sequence = runtime.engine.new_sequence()
        fed = np.empty(0, dtype=np.int64)
        for turn in (first, second):
            fed = np.concatenate([fed, turn])
            logits = runtime.engine.prefill(sequence, turn.astype(np.uint32)).logits
            for _ in range(8):
                expected = reference(torch.from_numpy(fed)[None]).logits[0, -1]
                assert logits is not None
                assert (logits - expected).abs().max() <= close * expected.abs().max()
                token = int(expected.argmax())
                fed = np.append(fed, token)
                logits = runtime.engine.decode([sequence], [token])[0]
        runtime.store.check_integrity()


def test_every_supported_family_is_compared() -> None:
    assert {name.split("-")[0] for name in FAMILIES} == SUPPORTED.keys()


def test_some_families_have_every_part() -> None:
    """Whatever a `Form` can say otherwise than Llama, one of `FORMS` says."""
    plain = SUPPORTED["llama"].form
    said = {
        (field.name, str(value))
        for name in FORMS for field in dataclasses.fields(plain)
        if (value := getattr(SUPPORTED[name].form, field.name))
    }  # fmt: skip
    names = {name for name, _ in said}
    others = {"residual_factor", "embedding_factor", "score_scale", "logit_divisor", "rotated_layers"}  # plain factors
    others |= {"mixer", "gates_attention"}  # tried by themselves (`test_hybrids`)
    others |= {"is_latent"}  # not in what is compiled
    assert names | others == {field.name for field in dataclasses.fields(plain)}


def test_other_families_are_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    config = (tiny_llama / "config.json").read_text().replace('"llama"', '"gpt2"')
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="'gpt2' is not supported"):
        Runtime.load(tmp_path, kv=KVConfig(path=tmp_path / "kv"))
