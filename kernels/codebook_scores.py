"""Vector quantisation whose codebook preserves q.k, and the ranking of coded tokens from a table of scores.

Shapes  keys [G, n, D]   metric [G, D, D], symmetric positive definite   codewords [G, N, D]
        table [G, R, C], scores of the C *cells* a token can be in   cells int64 [G, n]
Formula code_j = argmin_c (k_j - c) H (k_j - c)^T = argmax_c k_j H c^T - 1/2 c H c^T, since with H = E[q^T q]
        (k - c) H (k - c)^T = E[(q.k - q.c)^2]
Dtypes  fp16/bf16/fp32; arithmetic in fp32
Triton  codes only, whose scores are never written. A table is looked up by PyTorch's `gather`, which reads a cell and
        writes a score per token, as a kernel of ours would, and ranked by its `topk` (see `topk_pages`)
Paper   A2ATS (arXiv 2502.12665)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton

_BLOCK = 1024
"""Keys coded at a time: this bounds the memory that their distances to all codewords take."""


def half_norms(metric: Tensor, codewords: Tensor) -> Tensor:
    """1/2 c H c^T, fp32 `[G, N]`: the term that `nearest_codewords` subtracts."""
    c = codewords.float()
    return 0.5 * ((c @ metric.float()) * c).sum(-1)


def nearest_codewords(keys: Tensor, metric: Tensor, codewords: Tensor, norms: Tensor) -> Tensor:
    """The number of the nearest codeword for each key, int64 `[G, n]`; the first of equally near ones. `norms` come
    from `half_norms`."""
    on_gpu = uses_triton(keys, metric, codewords, norms)
    return (nearest_codewords_triton if on_gpu else _nearest_codewords_torch)(keys, metric, codewords, norms)


def _nearest_codewords_torch(keys: Tensor, metric: Tensor, codewords: Tensor, norms: Tensor) -> Tensor:
    """The codes by two matrix products; no key is whitened."""
    columns, offsets = codewords.float().transpose(1, 2), -norms.unsqueeze(1)
    codes = torch.empty(keys.shape[:2], dtype=torch.int64, device=keys.device)
    for begin in range(0, keys.shape[1], _BLOCK):
        some = keys[:, begin : begin + _BLOCK].float() @ metric.float()
        torch.argmax(torch.baddbmm(offsets, some, columns), -1, out=codes[:, begin : begin + _BLOCK])
    return codes


@jit
def _nearest_kernel(
    keys: tl.tensor, columns: tl.tensor, norms: tl.tensor, codes: tl.tensor,
    k_g: tl.tensor, k_n: tl.tensor, k_d: tl.tensor, count: tl.tensor, words: tl.tensor,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Compares a block of keys with all codewords, keeping the best so far in registers. No key's code depends on other
    keys."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    m_n = o_n < count
    b_best = tl.full([BLOCK_N], -float("inf"), dtype=tl.float32)
    b_code = tl.zeros([BLOCK_N], dtype=tl.int32)
    for i_c in range(0, words, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        row, m_c = i_g * words + o_c, o_c < words
        b_s = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
        for i_d in range(0, DIM, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            m_d = (o_d < DIM)[None, :]
            p_k = keys + i_g * k_g + o_n[:, None] * k_n + o_d[None, :] * k_d
            b_k = tl.load(p_k, mask=m_n[:, None] & m_d, other=0.0).to(tl.float32)  # [BLOCK_N, BLOCK_D]
            b_c = tl.load(columns + row[:, None] * DIM + o_d[None, :], mask=m_c[:, None] & m_d, other=0.0)
            b_s = tl.dot(b_k, tl.trans(b_c), b_s, input_precision="tf32x3")
        b_s -= tl.load(norms + row, mask=m_c, other=float("inf"))[None, :]
        b_top, b_at = tl.max(b_s, 1, return_indices=True)
        b_code = tl.where(b_top > b_best, i_c + b_at, b_code)
        b_best = tl.maximum(b_best, b_top)
    tl.store(codes + i_g * count + o_n, b_code.to(tl.int64), mask=m_n)


def nearest_codewords_triton(keys: Tensor, metric: Tensor, codewords: Tensor, norms: Tensor) -> Tensor:
    """The codes by Triton. It multiplies the codewords by the metric, not the keys: k H c = k . (c H). Keys may be
    strided."""
    groups, count, dim = keys.shape
    columns = codewords.float() @ metric.float()
    codes = torch.empty(groups, count, dtype=torch.int64, device=keys.device)
    launch(
        _nearest_kernel, (cdiv(count, 64), groups), keys, columns, norms, codes, *keys.stride(), count,
        codewords.shape[1],
        DIM=dim, BLOCK_N=64, BLOCK_C=64, BLOCK_D=min(32, block_of(dim, 16)), num_warps=8, num_stages=2,
    )  # fmt: skip
    return codes


def nearest_codewords_reference(keys: Tensor, metric: Tensor, codewords: Tensor) -> Tensor:
    """The formula, in float64."""
    apart = keys.double().unsqueeze(2) - codewords.double().unsqueeze(1)
    return torch.einsum("gnci,gij,gncj->gnc", apart, metric.double(), apart).argmin(-1)


def shared_scores(table: Tensor, cells: Tensor) -> Tensor:
    """The mean over the query heads of their softmax over all tokens, fp32 `[G, n]`: equal to `group_scores` of every
    token's scores, but computed once per cell."""
    counts = _counts(cells, table.shape[-1])
    shares = torch.softmax(table.float() + counts.log().unsqueeze(1), -1).mean(1) / counts.clamp(min=1)
    return shares.gather(1, cells)


def union_scores(table: Tensor, cells: Tensor, count: int) -> Tensor:
    """Scores int64 `[G, n]` by which the best `count` tokens are the union of the query heads' own best.

    A token's score is lower the later the head that ranks it first comes to it; between heads that come to theirs at
    the same rank the first head goes first, and within a cell, whose tokens look alike, the last token. No two
    scores are equal.
    """
    groups, heads, width = table.shape
    total = cells.shape[1]
    counts = _counts(cells, width).long().unsqueeze(1)
    taken = min(count, width)  # a head's first `count` cells that are not empty hold `count` tokens
    order = table.float().masked_fill(counts == 0, float("-inf")).topk(taken, -1).indices
    held = counts.expand(-1, heads, -1).gather(2, order)
    turns = (held.cumsum(-1) - held) * heads + torch.arange(heads, device=table.device).unsqueeze(1)
    last = torch.full((groups, width), total * heads, dtype=torch.int64, device=table.device)
    first = last.scatter_reduce_(1, order.flatten(1), turns.flatten(1), "amin")
    return torch.arange(total, device=table.device) - first.gather(1, cells) * total


def union_scores_reference(table: Tensor, cells: Tensor) -> Tensor:
    """The turn in which each token is first chosen, int64 `[G, n]`, lowest first: head by head, token by token."""
    groups, heads, _ = table.shape
    turns = torch.full_like(cells, cells.shape[1] * heads)
    for group in range(groups):
        for head in range(heads):
            scores = table[group, head, cells[group]]
            for token, score in enumerate(scores):
                rank = int((scores > score).sum())
                turns[group, token] = min(int(turns[group, token]), rank * heads + head)
    return turns


def _counts(cells: Tensor, width: int) -> Tensor:
    """The number of tokens in each cell, fp32 `[G, width]` (exact up to 2^24)."""
    zeros = torch.zeros(cells.shape[0], width, dtype=torch.float32, device=cells.device)
    return zeros.scatter_add_(1, cells, torch.ones(1, 1, dtype=torch.float32, device=cells.device).expand(cells.shape))
