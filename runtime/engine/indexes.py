"""The indexes of a model: one for each layer that is tiered."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...retrieval import Index, IndexedLayer, make_index
from ...retrieval.registry import index_class
from ..api.config import KVConfig
from ..model.model import Model


def make_indexes(model: Model, config: KVConfig, profile: Mapping[int, Mapping[str, Tensor]]) -> list[Index]:
    """Make the index of each tiered layer, as `config` says.

    Args:
        profile: by layer, from `Profiles.needed`.

    Raises:
        ValueError: an unknown index or setting, one that is not for this model, or it needs a profile and there is
            none.
    """
    found, _ = index_class(config.index)
    if model.value_dim is not None and found.reads_values_alone:
        raise ValueError(
            f"index {found.name!r} reads values without their keys, and this model's keys contain the values; take "
            "another index, such as spectral"
        )
    layers = []
    profile = profile if found.needs_profile else {}
    for place, number in enumerate(model.tiered):
        known = {name: tensor.to(model.device) for name, tensor in profile.get(number, {}).items()}
        layers.append(IndexedLayer(number, model.rotation(number), known or None, place, len(model.tiered)))
    return [make_index(config.index, config.index_params(), layer) for layer in layers]
