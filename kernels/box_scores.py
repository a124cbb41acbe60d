"""Both bounds of q.k over the keys inside element-wise boxes: none scores above `hi`, none below `lo`.

Shapes  q [G, R, D]   boxes [G, N, 2*D], maxima first (`page_bounds`)   ->  hi, lo [G, R, N] fp32
        counts int [G], boxes of each row (None: N)
Formula hi = sum_d max(q_d min_d, q_d max_d);  lo = sum_d min(q_d min_d, q_d max_d);  both -inf from box counts[g] on
Dtypes  boxes fp16/bf16/fp32; products and sums in fp32, where hi >= lo holds after rounding, too: the Triton kernel
        adds both in the same order, and each rounding keeps the order
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import uses_triton
from .page_bounds import both_bounds_triton
from .ragged import cut_rows


def box_scores_reference(q: Tensor, boxes: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The formula, box by box."""
    top, bottom = boxes.float().unsqueeze(1).chunk(2, -1)
    query = q.float().unsqueeze(2)
    ends = query * top, query * bottom
    hi, lo = torch.maximum(*ends).sum(-1), torch.minimum(*ends).sum(-1)
    return cut_rows(hi, counts), cut_rows(lo, counts)


def box_scores_triton(q: Tensor, boxes: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The formula as it stands, each box read once."""
    hi, lo = both_bounds_triton(q, boxes, counts, lower=True)
    assert lo is not None
    return hi, lo


def box_scores(q: Tensor, boxes: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both bounds, by one matrix product on a CPU: a positive q_d is largest at the maximum, a negative one at the
    minimum."""
    if uses_triton(q, boxes, counts):
        return box_scores_triton(q, boxes, counts)
    query = q.float()
    up, down = query.clamp(min=0), query.clamp(max=0)
    signed = torch.cat([torch.cat([up, down], -1), torch.cat([down, up], -1)], 1)
    hi, lo = (signed @ boxes.float().transpose(1, 2)).chunk(2, 1)
    return cut_rows(torch.maximum(hi, lo), counts), cut_rows(lo, counts)
