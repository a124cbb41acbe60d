"""The placements of a model, one for each tiered layer, and the moment at which all of them have seen a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from ...retrieval.placement import Facts, Placement
from ...retrieval.placement_registry import PlacementSpec
from ..api.config import KVConfig
from ..layers.base import LayerKV
from ..layers.tiered import tiered_layers
from ..model.model import Model
from ..model.token_classes import token_classes
from .search_heads import search_scores


def make_placements(
    layers: Iterable[int], config: KVConfig, facts: Callable[[type[Placement]], Facts]
) -> dict[int, Placement]:  # fmt: skip
    """Make the placement of each of these layers, as `config` says; none if it says nothing. Raises ValueError for a
    setting that is unknown or out of range."""
    if (spec := config.placing) is None:
        return {}
    known = facts(spec.load()[0])
    return {layer: spec.make(config.index_params(), layer, known) for layer in layers}


def facts_of(model: Model, kind: type[Placement]) -> Facts:
    """What placements of this kind may know of a model."""
    classes = token_classes(model.tokenizer, model.config.vocab_size) if kind.reads else None
    looks_back = search_scores(model) if kind.searches else {}
    return Facts(model.num_heads // model.num_kv_heads, looks_back, classes)


def place(layers: list[LayerKV], spec: PlacementSpec, tokens: np.ndarray) -> None:
    """A prompt has come to these tokens, all so far, in every layer: divide what may be kept among the layers, and keep
    that."""
    num_tokens = len(tokens)
    placed = [layer.placed for layer in tiered_layers(layers) if layer.placed is not None]
    if not placed:
        return
    for one in placed:
        one.read(tokens)
    budgets = placed[0].placement.divide([one.wish() for one in placed], spec.tokens(num_tokens))
    for one, budget in zip(placed, budgets, strict=True):
        one.place(budget, num_tokens if spec.is_share else 0)


def is_placed(layers: list[LayerKV]) -> bool:
    """Whether that has happened to the text in `layers`."""
    return all(layer.placed is None or layer.placed.kept.budget is not None for layer in tiered_layers(layers))
