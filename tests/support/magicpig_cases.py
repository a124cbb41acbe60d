"""Random tensors and indexes that the tests of MagicPIG share."""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.index import Index
from stratakv.retrieval.layer import IndexedLayer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def index_of(settings: str = "", params: IndexParams | None = None, layer: int = 0) -> Index:
    return make_index("magicpig" + settings, params or IndexParams(sink=0, local=0), IndexedLayer(layer))
