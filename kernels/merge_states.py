"""Merge partial attention over disjoint keys by log-sum-exp.

Shapes  outs: list of [..., D]   lses: list of [...] fp32   -> out [..., D], lse [...]
Formula lse = logsumexp_i lse_i;  out = sum_i exp(lse_i - lse) out_i
Dtypes  weights and sum in fp32, out in the dtype of the parts; a part that saw nothing has lse -inf
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Raises ValueError if there is nothing to merge or the lists differ in length."""
    if not outs or len(outs) != len(lses):
        raise ValueError(f"expected one lse per part, got {len(outs)} parts and {len(lses)} lses")
    if len(outs) == 1:
        return outs[0], lses[0]
    stacked = torch.stack(list(lses))
    lse = torch.logsumexp(stacked, 0)
    total = torch.zeros_like(outs[0], dtype=torch.float32)
    for out, part in zip(outs, stacked, strict=True):
        total += out.float() * torch.exp(part - lse).nan_to_num_(0.0).unsqueeze(-1)
    return total.to(outs[0].dtype), lse
