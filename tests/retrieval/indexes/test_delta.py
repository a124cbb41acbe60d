"""`delta`: all heads share the pages whose tokens some head or other attends to."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexedLayer, IndexParams, make_index
from stratakv.retrieval.indexes.delta import DeltaIndex

WEIGHTS = torch.tensor(
    [
        [[0.2, 0.1, 0.0, 0.0, 0.4, 0.0, 0.0, 0.0, 0.1, 0.2], [0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0]],
        [[0.0, 0.0, 0.0, 0.5, 0.4, 0.1, 0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.2, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0]],
    ]
)
"""Of two KV heads with two query heads each; the largest ones .2 .2 .3 .5 .4 .1 .5 .7 .1 .2, of pages .4 .8 .5 1.2 .3,
where the sums would be .6 1.0 .9 1.2 .3, and the largest of sums per KV head others again."""


def chosen(recent: int, budget: int, sink: int = 0) -> list[list[int]]:
    params = IndexParams(page_size=2, sink=sink, local=0)
    index = make_index(f"delta:recent={recent}", params, IndexedLayer(place=2, count=28))
    assert isinstance(index, DeltaIndex)
    return index.choose(WEIGHTS, budget, ()).ids.tolist()


def test_delta_by_hand() -> None:
    assert chosen(0, 4) == [[1, 3]] * 2
    assert chosen(0, 7) == [[1, 2, 3]] * 2, "a page that two heads attend to a little is worth less than by sums"
    assert chosen(1, 4) == [[3, 4]] * 2, "the last one in any case"
    assert chosen(8, 6) == [[1, 3, 4]] * 2, "no more of the last ones than half of the budget"
    assert chosen(8, 6, sink=1) == [[0, 3, 4]] * 2
