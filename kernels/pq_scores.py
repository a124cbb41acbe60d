"""Scores of product-quantised keys by table look-up.

Shapes  codes uint8 [G, n, M]   q [G, R, W]   codebooks [G, M, C, W/M]   ->  tables [G, R, M, C], scores [G, R, n]
Formula tables[g,r,m,c] = q[g,r,m-th part] . codebooks[g,m,c];  scores[g,r,j] = sum_m tables[g,r,m,codes[g,j,m]]
Dtypes  codebooks of any float type; tables, sums and scores fp32
Limits  C at most 256
Paper   Jegou et al., Product quantization for nearest neighbor search (2011); PQCache (arXiv 2407.12820)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pq_tables(q: Tensor, codebooks: Tensor) -> Tensor:
    """What each part of a query scores with each centroid of that part."""
    groups, parts, _, width = codebooks.shape
    split = q.float().view(groups, q.shape[1], parts, width).transpose(1, 2)  # [G, M, R, W/M]
    return (split @ codebooks.float().transpose(2, 3)).transpose(1, 2)


def pq_scores_reference(tables: Tensor, codes: Tensor) -> Tensor:
    """The formula, part by part."""
    each = codes.long().unsqueeze(1).expand(-1, tables.shape[1], -1, -1)  # [G, R, n, M]
    return torch.stack([tables[:, :, m].gather(2, each[..., m]) for m in range(codes.shape[2])]).sum(0)


def pq_scores(tables: Tensor, codes: Tensor) -> Tensor:
    """One pass over the codes for all query heads of a group: a bag of M rows of R scores per token."""
    groups, repeats, parts, size = tables.shape
    rows = tables.permute(0, 2, 3, 1).reshape(groups * parts * size, repeats)
    first = torch.arange(groups * parts, dtype=torch.int32, device=codes.device).view(groups, 1, parts) * size
    bags = (codes.int() + first).view(-1, parts)
    if not len(bags):
        return tables.new_empty(groups, repeats, 0)
    scores = F.embedding_bag(bags, rows, mode="sum")
    return scores.view(groups, -1, repeats).transpose(1, 2)
