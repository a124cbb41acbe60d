"""What an index knows of its layer, where nobody says more and where somebody does."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from indexes import HalfSplitRope

from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.layer import IndexedLayer, NoRotation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", [torch.arange(5), torch.arange(10).view(2, 5)], ids=["alike", "by-head"])
def test_a_layer_without_positions_leaves_keys_as_they_are(dtype: torch.dtype, positions: torch.Tensor) -> None:
    """But for their dtype: results are fp32 whatever the rotation."""
    keys = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    for turned in (NoRotation().rotate(keys, positions), NoRotation().unrotate(keys, positions)):
        assert turned.dtype == torch.float32
        assert torch.equal(turned, keys.float())


def test_an_index_of_which_nothing_is_said_has_a_layer_without_positions() -> None:
    layer = make_index("dense", IndexParams()).layer
    assert (layer.number, layer.profile) == (0, None)
    assert isinstance(layer.rotation, NoRotation)


def test_a_layer_is_what_it_was_made_as() -> None:
    rope, profile = HalfSplitRope(), {"centroids": torch.ones(2)}
    layer = make_index("dense", IndexParams(), IndexedLayer(3, rope, profile)).layer
    assert (layer.number, layer.rotation, layer.profile) == (3, rope, profile)
    with pytest.raises(FrozenInstanceError):
        layer.number = 4
