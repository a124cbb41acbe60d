"""What a tiny GGUF file of each architecture holds, to be changed without writing it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from gguf_models import FAMILIES, random_model, write_gguf
from safetensors.torch import load_file

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf.container import Contents, Tensor, read_gguf
from stratakv.runtime.model.gguf.directory import read_model
from stratakv.runtime.model.gguf.keys import Keys
from stratakv.runtime.model.gguf.weights_file import write_weights

_OF_TWO_KINDS = ("gemma3", "gemma4", "lfm2", "qwen35", "qwen35moe", "qwen3next", "deepseek2")
_FOLDER = TemporaryDirectory(prefix="gguf-")


@cache
def contents_of(family: str) -> Contents:
    """Of the plain file. Its tensors can be read."""
    path = Path(_FOLDER.name) / f"{family}.gguf"
    settings = {"num_hidden_layers": 2} if family in _OF_TWO_KINDS else {"num_hidden_layers": 1}
    write_gguf(path, random_model(family, **settings), family)
    return read_gguf([path])


def changed(
    family: str, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor | None] | None = None
) -> Contents:
    """The same with other keys, named without the architecture unless they begin with a dot, and other tensors; None
    leaves one out."""
    whole = contents_of(family)
    said = dict(whole.keys)
    for name, value in (keys or {}).items():
        said[name[1:] if name.startswith(".") else f"{family}.{name}"] = value
    held = {**whole.tensors, **(tensors or {})}
    values = {name: value for name, value in said.items() if value is not None}
    return dataclasses.replace(
        whole,
        keys=AsKeys(values),
        tensors={name: tensor for name, tensor in held.items() if tensor is not None},
    )


def refusal(read: Callable[[Contents], object], contents: Contents) -> str:
    """What reading them says, one line, without the file's name."""
    with pytest.raises(ModelFileError) as raised:
        read(contents)
    said = str(raised.value)
    assert "\n" not in said
    return said.removeprefix(f"{contents.path}: ")


class AsKeys(Keys):
    """Keys that no file has."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._plain = dict(values)
        self._values = self._plain

    def __getitem__(self, name: str) -> Any:
        return self._plain[name]

    def count(self, name: str) -> int | None:
        value = self._plain.get(name)
        return len(value) if isinstance(value, list) else None


def like(family: str, of: str, **changes: Any) -> Tensor:
    """A tensor of the plain file with another name or shape."""
    return dataclasses.replace(contents_of(family).tensors[of], **changes)


def weights_of(paths: list[Path], folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights that are made from a file, or from the parts of one."""
    found, made = read_model(paths), folder / "made.safetensors"
    made.unlink(missing_ok=True)
    write_weights(made, found.weights, dtype)
    return dict(load_file(made))


__all__ = ["FAMILIES", "changed", "contents_of", "like", "weights_of"]
