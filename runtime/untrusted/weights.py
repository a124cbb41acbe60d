"""A bounded look at the headers of a model's weight files before any library maps them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from .json_files import of_file
from .safetensors_header import read_header


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors' shapes by name, and how many numbers they hold together."""

    shapes: dict[str, tuple[int, ...]]
    elements: int


def read_weights(path: Path) -> Weights:
    """Read a file's header. Raises ModelFileError, which names file and field, unless it can be believed."""
    with path.open("rb") as file:
        tensors = read_header(file, path.stat().st_size, of_file(path)).tensors()
    return Weights(
        {name: entry.shape for name, entry in tensors.items()}, sum(prod(entry.shape) for entry in tensors.values())
    )
