"""The heads of each layer's attention: how many there are, and how wide. In most families all layers are alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..api.errors import ModelFileError
from ..untrusted.families import FAMILIES
from .latent import Latent


class HeadShape(NamedTuple):
    """The heads of one layer."""

    heads: int
    """Of queries."""
    kv_heads: int
    dim: int


def head_shape(config: Any, layer: int) -> HeadShape:
    """That of a layer of a model."""
    heads: int = config.num_attention_heads
    if (latent := Latent.of(config)) is not None:
        return HeadShape(heads, 1, latent.width)
    said = config.per_layer_config[layer] if FAMILIES[config.model_type].form.has_heads_by_kind else config
    dim = getattr(said, "head_dim", None) or config.hidden_size // heads
    return HeadShape(heads, said.num_key_value_heads, dim)


def head_shapes(config: Any) -> list[HeadShape]:
    """Those of all layers. Layers that see everything are alike, and so are those of every other kind."""
    return [head_shape(config, layer) for layer in range(config.num_hidden_layers)]


def kinds_of(config: Any) -> list[str]:
    """The kind of each layer."""
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)


def windows_of(config: Any, longest: int) -> list[int | None]:
    """The window of each layer in tokens. None: it sees everything, as it does where no text is longer than its window;
    but where heads differ by kind of layer, one that slides has no pages whatever its window."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:  # models such as Mistral and Phi-3 give it to every layer without naming layer types
        windows = [getattr(config, "sliding_window", None)] * config.num_hidden_layers
    else:
        windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    if FAMILIES[config.model_type].form.has_heads_by_kind:
        return windows
    return [None if window is None or window >= longest else window for window in windows]


def check_alike(path: Path, config: Any) -> None:
    """Raise ModelFileError if layers of one kind differ in their heads: pages of all have one layout."""
    known: dict[str, HeadShape] = {}
    for layer, (kind, shape) in enumerate(zip(kinds_of(config), head_shapes(config), strict=True)):
        if known.setdefault(kind, shape) != shape:
            raise ModelFileError(f"{path}: layer {layer}: {shape.kv_heads} heads of {shape.dim} for keys, others that "
                                 f"are {kind} have {known[kind].kv_heads} of {known[kind].dim}")  # fmt: skip


def head_dims(config: Any, tables: Iterable[str]) -> dict[str, int]:
    """The width of the heads, or of their part that is rotated where the other one is a latent, that each rotary table
    turns."""
    latent = Latent.of(config)
    first, known = head_shape(config, 0).dim if latent is None else latent.rotated, {}
    if FAMILIES[config.model_type].form.has_heads_by_kind:
        known = {kind: shape.dim for kind, shape in zip(kinds_of(config), head_shapes(config), strict=True)}
    return {table: known.get(table, first) for table in tables}


def value_dim(config: Any) -> int | None:
    """The width of values where keys contain them; None: values have keys' width."""
    latent = Latent.of(config)
    return None if latent is None else latent.rank
