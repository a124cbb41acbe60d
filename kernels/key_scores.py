"""Exact scores of keys that lie in a buffer with room for more.

Shapes  q [G, R, D], keys [G, N, D]   ->  scores [G, R, N] fp32      counts int [G], keys of each row (None: N)
Formula score = q . k;  -inf from key counts[g] on
Dtypes  keys of any float type; products and sums in fp32
On CUDA each key is read once for all query heads; a score does not depend on N, which a matrix product's might.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .ragged import cut_rows, in_blocks

_BLOCK_ITEMS = 8192
"""The numbers of keys that a program holds: 64 of each thread's registers."""


def key_scores_reference(q: Tensor, keys: Tensor, counts: Tensor | None = None) -> Tensor:
    """The formula, key by key."""
    return cut_rows((q.float().unsqueeze(2) * keys.float().unsqueeze(1)).sum(-1), counts)


@jit
def _key_scores_kernel(
    q: tl.tensor, keys: tl.tensor, counts: tl.tensor, scores: tl.tensor,
    q_g: tl.tensor, q_r: tl.tensor, q_d: tl.tensor, k_g: tl.tensor, k_n: tl.tensor, k_d: tl.tensor,
    n_g: tl.tensor, total: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Scores a block of keys, read once for all query heads."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n, o_d = i_n * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64), tl.arange(0, BLOCK_D)
    held = total if counts is None else tl.load(counts + i_g * n_g)
    m_d = o_d < DIM
    p_k = keys + i_g * k_g + o_n[:, None] * k_n + o_d[None, :] * k_d
    b_k = tl.load(p_k, mask=(o_n < held)[:, None] & m_d[None, :], other=0.0).to(tl.float32)  # [BLOCK_N, BLOCK_D]
    for i_r in range(HEADS):
        b_q = tl.load(q + i_g * q_g + i_r * q_r + o_d * q_d, mask=m_d, other=0.0).to(tl.float32)
        b_s = tl.where(o_n < held, tl.sum(b_q[None, :] * b_k, 1), -float("inf"))
        tl.store(scores + (i_g * HEADS + i_r) * total + o_n, b_s, mask=o_n < total)


def key_scores_triton(q: Tensor, keys: Tensor, counts: Tensor | None = None) -> Tensor:
    """Scores by Triton. Inputs may be strided, counts expanded."""
    groups, heads, dim = q.shape
    total = keys.shape[1]
    scores = torch.empty(groups, heads, total, dtype=torch.float32, device=q.device)
    block = max(1, _BLOCK_ITEMS // block_of(dim))
    launch(
        _key_scores_kernel, (cdiv(total, block), groups), q, keys, counts, scores, *q.stride(), *keys.stride(),
        0 if counts is None else counts.stride(0), total,
        HEADS=heads, DIM=dim, BLOCK_N=block, BLOCK_D=block_of(dim), num_warps=4,
    )  # fmt: skip
    return scores


def key_scores(q: Tensor, keys: Tensor, counts: Tensor | None = None) -> Tensor:
    """Scores by products of some keys at a time on a CPU."""
    if uses_triton(q, keys, counts):
        return key_scores_triton(q, keys, counts)
    query = q.float()
    return cut_rows(in_blocks(lambda some: query @ some.float().transpose(1, 2), keys), counts)
