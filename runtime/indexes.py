"""The indexes of a model: one for each layer that is tiered."""

from __future__ import annotations

from ..retrieval import Index, IndexedLayer, make_index
from .config import KVConfig
from .model import Model


def make_indexes(model: Model, config: KVConfig) -> list[Index]:
    """As `config` says. Raises ValueError for an unknown index or setting."""
    layers = [IndexedLayer(number, model.rotation(number)) for number in model.tiered]
    return [make_index(config.index, config.index_params(), layer) for layer in layers]
