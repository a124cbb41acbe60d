"""Landmarks: the mean key of each chunk, and how badly it stands for the chunk's keys.

Shapes  keys [G, N*c, D]  ->  means [G, N, D], cosines [G, N]
Formula mean_i = 1/c sum_j k_ij;  cosine_i = min_j cos(k_ij, mean_i), the agreement of the key that agrees least
Dtypes  fp16/bf16/fp32; arithmetic and results in fp32. A mean or a key of zero length has cosine 0
Paper   ShadowKV (arXiv 2410.21465)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton

_SMALLEST = 1e-30
"""Keeps the cosine of a zero vector from being 0 / 0."""
_BLOCK_ITEMS = 2048
"""The numbers of means that one program holds."""


def landmarks_reference(keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The formula."""
    groups, tokens, dim = keys.shape
    each = keys.reshape(groups, tokens // chunk, chunk, dim).float()
    means = each.mean(2)
    products = (each * means.unsqueeze(2)).sum(-1)
    lengths = each.norm(dim=-1) * means.norm(dim=-1, keepdim=True)
    return means, (products / lengths.clamp(min=_SMALLEST)).amin(2)


@jit
def _landmarks_kernel(
    keys: tl.tensor, means: tl.tensor, cosines: tl.tensor, k_g: tl.tensor, k_n: tl.tensor, k_d: tl.tensor,
    count: tl.tensor, chunk: tl.tensor, smallest: tl.tensor,
    DIM: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Computes a block of chunks, key after key; the second pass finds the keys in the cache."""
    i_c, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_c, o_d = i_c * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64), tl.arange(0, BLOCK_D)
    m_c, m_k = o_c < count, (o_c < count)[:, None] & (o_d < DIM)[None, :]
    p_k = keys + i_g * k_g + (o_c * chunk)[:, None] * k_n + o_d[None, :] * k_d
    b_mean = tl.zeros([BLOCK_C, BLOCK_D], dtype=tl.float32)
    for i_j in range(chunk):
        b_mean += tl.load(p_k + i_j * k_n, mask=m_k, other=0.0).to(tl.float32)
    b_mean = b_mean / chunk
    b_length = tl.sqrt(tl.sum(b_mean * b_mean, 1))
    b_least = tl.full([BLOCK_C], float("inf"), dtype=tl.float32)
    for i_j in range(chunk):
        b_k = tl.load(p_k + i_j * k_n, mask=m_k, other=0.0).to(tl.float32)
        b_lengths = tl.sqrt(tl.sum(b_k * b_k, 1)) * b_length
        b_least = tl.minimum(b_least, tl.sum(b_k * b_mean, 1) / tl.maximum(b_lengths, smallest))
    row = i_g * count + o_c
    tl.store(means + row[:, None] * DIM + o_d[None, :], b_mean, mask=m_k)
    tl.store(cosines + row, b_least, mask=m_c)


def landmarks_triton(keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Means and cosines by Triton. Keys may be strided."""
    groups, tokens, dim = keys.shape
    count = tokens // chunk
    means = torch.empty(groups, count, dim, dtype=torch.float32, device=keys.device)
    cosines = torch.empty(groups, count, dtype=torch.float32, device=keys.device)
    block = max(1, _BLOCK_ITEMS // block_of(dim))
    launch(
        _landmarks_kernel, (cdiv(count, block), groups), keys, means, cosines, *keys.stride(), count, chunk, _SMALLEST,
        DIM=dim, BLOCK_C=block, BLOCK_D=block_of(dim), num_warps=4,
    )  # fmt: skip
    return means, cosines


def landmarks(keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Means and cosines of all chunks. Raises ValueError if the keys are not whole chunks."""
    if keys.shape[1] % chunk:
        raise ValueError(f"{keys.shape[1]} keys are not whole chunks of {chunk}")
    return (landmarks_triton if uses_triton(keys) else landmarks_reference)(keys, chunk)
