"""The making of a model directory from a GGUF file: config.json, weights, and the files that `tokenizer` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ...untrusted.families import FAMILIES
from ...untrusted.numbers import check_allocation, check_shape, reading
from ..decoder import Decoder
from ..mlp import kept_exact
from ..model_files import make_configuration, narrowest, num_with_heads
from ..sharing import check_sharing
from .architectures import read_settings
from .container import Contents, read_gguf
from .plan import Weight, plan_weights
from .tokenizer import write_tokenizer
from .weights_file import write_weights


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that can be loaded: its contents, and the configuration and weights made from it."""

    contents: Contents
    config: dict[str, Any]
    """The content of config.json."""
    weights: list[Weight]

    @property
    def num_weights(self) -> int:
        """The number of elements in all weights together."""
        return sum(weight.elements for weight in self.weights)


def read_model(paths: Sequence[Path]) -> ModelFile:
    """Read a model. Raises ModelFileError, in one line, unless every key and tensor has its place in a model that we
    can run.

    Args:
        paths: a file, or all parts of a split one.
    """
    contents = read_gguf(paths)
    entry, config = read_settings(contents)
    check_sharing(contents.path, SimpleNamespace(**config))
    sizes, elements = _sizes(config), sum(tensor.elements for tensor in contents.tensors.values())
    check_shape(contents.path, sizes)
    with_heads = num_with_heads(SimpleNamespace(**config))
    check_allocation(contents.path, sizes, elements, len(contents.tensors), with_heads)
    with reading(contents.path, "a readable GGUF model"):
        decoder = _decoder(config)
    exact, planned = kept_exact(decoder), plan_weights(contents, entry, config, _shapes(decoder))
    return ModelFile(contents, config, [replace(weight, is_exact=weight.name in exact) for weight in planned])


def write_model(found: ModelFile, dtype: torch.dtype | None, target: Path) -> None:
    """Fill the empty folder `target` with the model, or without a dtype with everything but its weights. Raises OSError
    and what the writers of its files raise."""
    config = found.config if dtype is None else {**found.config, "dtype": str(dtype).removeprefix("torch.")}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(found.contents.path, found.contents.keys, target)
    if dtype is not None:
        write_weights(target / "model.safetensors", found.weights, dtype)


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    widths = {"intermediate_size": narrowest(SimpleNamespace(**config))}
    return {**{name: config[name] for name in names}, **widths, "head_dim": head_dim}


def _decoder(config: Mapping[str, Any]) -> Decoder:
    """The model without weights, which knows those that it has."""
    family = config["model_type"]
    settings = {name: value for name, value in config.items() if name in FAMILIES[family].names}
    return Decoder(make_configuration(family, settings))


def _shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in decoder.state_dict().items()}
