"""Scores of product-quantised keys by table look-up.

Shapes  codes uint8 [G, n, M]   q [G, R, W]   codebooks [G, M, C, W/M]   ->  tables [G, R, M, C], scores [G, R, n]
        counts int [G], tokens of each row (None: n); scores are -inf from token counts[g] on
Formula tables[g,r,m,c] = q[g,r,m-th part] . codebooks[g,m,c];  scores[g,r,j] = sum_m tables[g,r,m,codes[g,j,m]]
Dtypes  codebooks of any float type; tables, sums and scores fp32
Limits  C at most 256
Paper   Jegou et al., Product quantization for nearest neighbor search (2011); PQCache (arXiv 2407.12820)
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .ragged import cut_rows

_BLOCK_ITEMS = 1024
"""The number of scores that a program holds."""
_TOGETHER = 64


def pq_tables(q: Tensor, codebooks: Tensor) -> Tensor:
    """The scores of each part of a query with each centroid of that part. Fastest where each part's centroids lie as
    columns."""
    groups, parts, _, width = codebooks.shape
    split = q.float().view(groups, q.shape[1], parts, width).transpose(1, 2)  # [G, M, R, W/M]
    return (split @ codebooks.float().transpose(2, 3)).transpose(1, 2)


def pq_scores_reference(tables: Tensor, codes: Tensor, counts: Tensor | None = None) -> Tensor:
    """The formula, part by part."""
    each = codes.long().unsqueeze(1).expand(-1, tables.shape[1], -1, -1)  # [G, R, n, M]
    scores = torch.stack([tables[:, :, m].gather(2, each[..., m]) for m in range(codes.shape[2])]).sum(0)
    return cut_rows(scores, counts)


@jit
def _pq_scores_kernel(
    tables: tl.tensor, codes: tl.tensor, counts: tl.tensor, scores: tl.tensor,
    t_g: tl.tensor, t_r: tl.tensor, t_m: tl.tensor, t_c: tl.tensor, c_g: tl.tensor, c_n: tl.tensor, c_m: tl.tensor,
    count: tl.tensor, HEADS: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
) -> None:  # fmt: skip
    """Scores a block of tokens for all query heads: each code is read once, and the table's rows come from the
    cache."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n, o_r = i_n * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64), tl.arange(0, BLOCK_R)
    held = count if counts is None else tl.load(counts + i_g)
    m_n, m_r = o_n < held, o_r < HEADS
    b_s = tl.zeros([BLOCK_N, BLOCK_R], dtype=tl.float32)
    for i_m in range(PARTS):
        b_c = tl.load(codes + i_g * c_g + o_n * c_n + i_m * c_m, mask=m_n, other=0).to(tl.int32)
        p_t = tables + i_g * t_g + i_m * t_m + b_c[:, None] * t_c + o_r[None, :] * t_r
        b_s += tl.load(p_t, mask=m_n[:, None] & m_r[None, :], other=0.0)
    p_s = scores + (i_g * HEADS + o_r)[None, :] * count + o_n[:, None]
    tl.store(p_s, tl.where(m_n[:, None], b_s, -float("inf")), mask=(o_n < count)[:, None] & m_r[None, :])


def pq_scores_triton(tables: Tensor, codes: Tensor, counts: Tensor | None = None) -> Tensor:
    """Scores by Triton. Both inputs may be strided; tables are turned so that the query heads of one centroid lie side
    by side."""
    groups, heads, parts, _ = tables.shape
    tables = tables.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    count = codes.shape[1]
    scores = torch.empty(groups, heads, count, dtype=torch.float32, device=codes.device)
    block = max(32, _BLOCK_ITEMS // block_of(heads))
    launch(
        _pq_scores_kernel, (cdiv(count, block), groups), tables, codes, counts, scores, *tables.stride(),
        *codes.stride(), count, HEADS=heads, PARTS=parts, BLOCK_N=block, BLOCK_R=block_of(heads), num_warps=4,
    )  # fmt: skip
    return scores


def pq_scores(tables: Tensor, codes: Tensor, counts: Tensor | None = None) -> Tensor:
    """Scores by one pass over the codes on a CPU, for all query heads of a group: each token is a bag of M rows of R
    scores."""
    if uses_triton(tables, codes, counts):
        return pq_scores_triton(tables, codes, counts)
    groups, repeats, parts, size = tables.shape
    count = codes.shape[1]
    if not count:
        return tables.new_empty(groups, repeats, 0)
    rows = tables.permute(0, 2, 3, 1).reshape(groups * parts * size, repeats)
    scores = F.embedding_bag(_bags(codes, size), rows, mode="sum")
    return cut_rows(scores.view(groups, count, repeats).transpose(1, 2).contiguous(), counts)


def _bags(codes: Tensor, size: int) -> Tensor:
    """For each token the rows that it sums, of all tables laid one below the other: int32 `[G * n, M]`."""
    groups, count, parts = codes.shape
    together = min(count & -count, _TOGETHER)  # several tokens a row, since rows as short as M are added slowly
    bags = codes.int().view(groups, count // together, together * parts)
    return bags.add_(_first_rows(groups, parts, size, together).to(codes.device)).view(-1, parts)


@cache
def _first_rows(groups: int, parts: int, size: int, together: int) -> Tensor:
    """The row at which each part's table begins, int32 `[G, 1, together * M]`."""
    first = torch.arange(groups * parts, dtype=torch.int32).view(groups, 1, parts) * size
    return first.repeat(1, 1, together)
