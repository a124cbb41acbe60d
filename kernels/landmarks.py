"""Landmarks: the mean key of each chunk, and how badly it stands for the chunk's keys.

Shapes  keys [G, N*c, D]  ->  means [G, N, D], cosines [G, N]
Formula mean_i = 1/c sum_j k_ij;  cosine_i = min_j cos(k_ij, mean_i), the agreement of the key that agrees least
Dtypes  fp16/bf16/fp32; arithmetic and results in fp32. A mean or a key of zero length has cosine 0
Paper   ShadowKV (arXiv 2410.21465)
"""

from __future__ import annotations

from torch import Tensor

_SMALLEST = 1e-30
"""Keeps the cosine of a zero vector from being 0 / 0."""


def landmarks(keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Raises ValueError if the keys are not whole chunks."""
    groups, tokens, dim = keys.shape
    if tokens % chunk:
        raise ValueError(f"{tokens} keys are not whole chunks of {chunk}")
    each = keys.reshape(groups, tokens // chunk, chunk, dim).float()
    means = each.mean(2)
    products = (each * means.unsqueeze(2)).sum(-1)
    lengths = each.norm(dim=-1) * means.norm(dim=-1, keepdim=True)
    return means, (products / lengths.clamp(min=_SMALLEST)).amin(2)
