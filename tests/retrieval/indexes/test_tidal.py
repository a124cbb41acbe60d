"""`tidal`: of each KV head the tokens with the largest share of the attention, all query heads together."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexedLayer, IndexParams, make_index
from stratakv.retrieval.indexes.tidal import TidalIndex

WEIGHTS = torch.tensor([[[0.1, 0.0, 0.3, 0.0, 0.0, 0.6, 0.0, 0.0], [0.1, 0.4, 0.3, 0.0, 0.1, 0.1, 0.0, 0.0]]])
"""Of two query heads: the sums are .2 .4 .6 0 .1 .7 0 0, the largest .1 .4 .3 0 .1 .6 0 0."""


def chosen(spec: str, budget: int, sink: int = 0, local: int = 0) -> list[list[int]]:
    index = make_index(spec, IndexParams(page_size=4, sink=sink, local=local), IndexedLayer(place=2, count=32))
    assert isinstance(index, TidalIndex)
    return index.choose(WEIGHTS, budget, ()).ids.tolist()


def test_tidal_by_hand() -> None:
    assert chosen("tidal", 2) == [[2, 5]]
    assert chosen("tidal:most=1", 2) == [[1, 5]]
    assert chosen("tidal", 3, sink=1, local=1) == [[0, 5, 7]]
