"""A directory is read from its configuration on: what is wrong is told before more is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.opening import open_modules

CPU = torch.device("cpu")


def opened(folder: Path, weights: str, given: list[Any]) -> Any:
    return open_modules(folder, CPU, torch.bfloat16, weights, "own", (), given.append)


def test_the_tokenizer_is_given_before_weights_are_read(tmp_path: Path) -> None:
    folder, given = save_tiny_model(tmp_path), list[Any]()
    found = opened(folder, "own", given)
    assert given == [found.tokenizer]
    assert found.in_file is None
    assert found.hf.config.name_or_path == found.tokenizer.name_or_path == str(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError):
        opened(folder, "own", given)


def test_weights_that_there_cannot_be_are_refused_before_that(tiny_llama: Path) -> None:
    given = list[Any]()
    with pytest.raises(ValueError, match=r"^weights=int4 needs rows"):
        opened(tiny_llama, "int4", given)
    assert given == []
