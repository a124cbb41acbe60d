"""Both bounds of q.k over the keys inside element-wise boxes: none scores above `hi`, none below `lo`.

Shapes  q [G, R, D]   boxes [G, N, 2*D], maxima first (`page_bounds`)   ->  hi, lo [G, R, N] fp32
Formula hi = sum_d max(q_d min_d, q_d max_d);  lo = sum_d min(q_d min_d, q_d max_d)
Dtypes  boxes fp16/bf16/fp32; products and sums in fp32, where hi >= lo holds after rounding, too
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_scores_reference(q: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The formula as it stands."""
    top, bottom = boxes.float().unsqueeze(1).chunk(2, -1)
    query = q.float().unsqueeze(2)
    ends = query * top, query * bottom
    return torch.maximum(*ends).sum(-1), torch.minimum(*ends).sum(-1)


def box_scores(q: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """One matrix product: a positive q_d is largest at the maximum, a negative one at the minimum."""
    query = q.float()
    up, down = query.clamp(min=0), query.clamp(max=0)
    signed = torch.cat([torch.cat([up, down], -1), torch.cat([down, up], -1)], 1)
    hi, lo = (signed @ boxes.float().transpose(1, 2)).chunk(2, 1)
    return torch.maximum(hi, lo), lo
