"""What `stratakv calibrate` would learn of a layer, from random keys and queries: for indexes that need a profile."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from stratakv.retrieval.structures.codebook import learn_codebooks, query_metric


@cache
def a2ats_profile(shape: tuple[int, int, int], codewords: int = 32) -> dict[str, Tensor]:
    """For KV heads, query heads each, and head dim."""
    groups, heads, dim = shape
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(groups, 8 * codewords, dim, generator=generator)
    queries = torch.randn(groups, heads * 2 * dim, dim, generator=generator)
    books = learn_codebooks(keys, query_metric(queries.transpose(1, 2) @ queries), codewords)
    return {**books, "distance": torch.tensor(2048), "digest": torch.arange(16, dtype=torch.uint8)}
