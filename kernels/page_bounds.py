"""Per-page minima and maxima of keys, and the score no key of a page can exceed.

Shapes  keys [G, P*L, D]  ->  bounds [G, P, 2*D], maxima first
        q [G, R, D], bounds [G, P, 2*D]  ->  scores [G, R, P]
Formula score = sum_d max(q_d * lo_d, q_d * hi_d) = max(q, 0) . hi + min(q, 0) . lo
Dtypes  bounds keep the keys' dtype (a bound must not be rounded inward); scores fp32
Paper   Quest (arXiv 2406.10774)
"""

from __future__ import annotations

import torch
from torch import Tensor


def page_bounds(keys: Tensor, page_size: int) -> Tensor:
    """Raises ValueError if the keys are not whole pages."""
    groups, tokens, dim = keys.shape
    if tokens % page_size:
        raise ValueError(f"{tokens} keys are not whole pages of {page_size}")
    pages = keys.reshape(groups, tokens // page_size, page_size, dim)
    return torch.cat([pages.amax(2), pages.amin(2)], -1)


def bound_scores_reference(q: Tensor, bounds: Tensor) -> Tensor:
    """The first form of the formula."""
    hi, lo = bounds.float().unsqueeze(1).chunk(2, -1)
    query = q.float().unsqueeze(2)
    return torch.maximum(query * lo, query * hi).sum(-1)


def bound_scores(q: Tensor, bounds: Tensor) -> Tensor:
    """The second form: one matrix product."""
    query = q.float()
    signed = torch.cat([query.clamp(min=0), query.clamp(max=0)], -1)
    return signed @ bounds.float().transpose(1, 2)
