"""Which layers of a sequence have steps that an index chooses for."""

from __future__ import annotations

import torch
from kv_pages import SMALL
from layer_kv import REPEATS, SIZE, no_damage, opened, workspace_of

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.runtime.layers.paged import paged_layers
from stratakv.runtime.layers.sharing import sharing
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.tiered import TieredLayer, tiered_layers


def test_those_with_pages_and_those_that_share_some() -> None:
    with opened() as store:
        index = make_index("bounds", IndexParams(page_size=SIZE, sink=4, local=4))
        tiered = TieredLayer(1, store, index, workspace_of(), lambda _: 9, no_damage, repeats=REPEATS)
        window = SlidingLayer(0, 6, SMALL, torch.float32, torch.device("cpu"))
        shared, seen = sharing(2, tiered, no_damage), sharing(3, window, no_damage)
        assert paged_layers([window, tiered, shared, seen]) == [tiered, shared]
        assert tiered_layers([window, tiered, shared, seen]) == [tiered]
        assert [each.layer for each in (shared, seen)] == [2, 3]
