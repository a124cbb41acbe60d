"""The weights of a directory are read as transformers reads them, wherever the head stands; none is made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from as_transformers import CPU, assert_equal
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.model import Model


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def renamed(folder: Path, names: dict[str, str | None]) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path)
    for old, new in names.items():
        tensor = weights.pop(old)
        if new is not None:
            weights[new] = tensor
    save_file(weights, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_of_its_own_and_a_shared_one(is_tied: bool, tmp_path: Path) -> None:
    model = assert_equal(save_tiny_model(tmp_path, tie_word_embeddings=is_tied))
    assert (model.hf.lm_head.weight is model.inner.embed_tokens.weight) == is_tied


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_a_shared_head_may_be_there_under_the_other_name(tmp_path: Path) -> None:
    folder = renamed(save_tiny_model(tmp_path, tie_word_embeddings=True), {EMBEDDING: HEAD})
    model = assert_equal(folder)
    assert model.hf.lm_head.weight is model.inner.embed_tokens.weight


def test_a_shared_head_that_differs_is_used_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = edited(save_tiny_model(tmp_path, tie_word_embeddings=False), tie_word_embeddings=True)
    model = assert_equal(folder)
    assert model.hf.lm_head.weight is not model.inner.embed_tokens.weight
    assert "both are there and differ" in caplog.text


def test_weights_of_a_model_that_was_saved_without_its_head(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    names = load_file(folder / "model.safetensors").keys()
    assert_equal(renamed(folder, {name: name.removeprefix("model.") for name in names}))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = renamed(save_tiny_model(tmp_path), {"model.layers.1.mlp.up_proj.weight": None})
    for modules in ("own", "transformers"):
        with pytest.raises(ModelFileError, match=r"1 of the model's weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
            Model.load(folder, CPU, torch.float32, modules=modules)


def test_old_tables_are_left_out_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_model(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, path, {"format": "pt"})
    with caplog.at_level(logging.WARNING, "stratakv"):
        assert_equal(folder)
    assert not caplog.records


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.norm.weight": torch.ones(48, dtype=torch.int32)}, path, {"format": "pt"})
    with pytest.raises(ModelFileError, match="has int32 numbers"):
        Model.load(folder, CPU, torch.float32)
