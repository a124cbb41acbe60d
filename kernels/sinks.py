"""Learned sinks: a score of each query head that takes its share of the softmax, and has no value.

Shapes  out [..., D]   lse [...] fp32   sinks: broadcast to lse   ->  out [..., D]
Formula out * exp(lse) / (exp(lse) + exp(sink)): what a key with that score and the value zero would make of it
Dtypes  the share in fp32, out in its own
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """The attention of a whole softmax, with sinks that joined it."""
    return (out * torch.sigmoid(lse - sinks.float()).unsqueeze(-1)).to(out.dtype)
