"""Which layers of a model attend to keys and values of another one, in place of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..api.errors import ModelFileError
from ..untrusted.families import FAMILIES
from .head_shapes import kinds_of


def num_writing(config: Any) -> int:
    """The number of layers that have keys and values, or a state: the first ones. Those after them share."""
    name = FAMILIES[config.model_type].form.sharing_layers
    shared = 0 if name is None else int(getattr(config, name, None) or 0)
    return int(config.num_hidden_layers) - shared


def sources(config: Any) -> list[int]:
    """The layer whose keys and values each layer attends to: its own, or those of the last layer of its kind that has
    some."""
    kinds, writing = kinds_of(config), num_writing(config)
    last = {kind: at for at, kind in enumerate(kinds[:writing])}
    return [at if at < writing else last[kind] for at, kind in enumerate(kinds)]


def doubles_mlp(config: Any, at: int) -> bool:
    """Whether a layer's MLP is twice as wide as the model's."""
    name = FAMILIES[config.model_type].form.doubles_sharing_mlp
    return name is not None and bool(getattr(config, name)) and at >= num_writing(config)


def check_sharing(path: Path, config: Any) -> None:
    """Raise ModelFileError if some layer has nothing to attend to, or the model is none that transformers runs."""
    form = FAMILIES[config.model_type].form
    kinds, writing = kinds_of(config), num_writing(config)
    if writing == config.num_hidden_layers:
        return
    where = f"{path}: {form.sharing_layers}: {config.num_hidden_layers - writing}"
    if writing < 1 or (alone := set(kinds) - set(kinds[:writing])):
        missing = f" that are {sorted(alone)[0]}" if writing >= 1 else ""
        raise ModelFileError(f"{where} of {config.num_hidden_layers} layers, so none{missing} have keys of their own")
    if form.layer_inputs is None or not getattr(config, form.layer_inputs):
        raise ModelFileError(f"{where}, but {form.layer_inputs}: 0; layers that share read embeddings by layer")
    if form.experts is not None and form.experts.are_there(config):
        raise ModelFileError(f"{where}, and it has experts, which is not supported; take a model without")
