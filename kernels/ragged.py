"""Rows with room for more than they hold: of row g the first counts[g] of N units exist, the rest may hold anything.

What is computed of the units that exist must not depend on how much room there is, to the bit: a sequence that was
forked or loaded has other room. Kernels look at a fixed number of units at a time by themselves; products do by
`in_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1024
"""Units in one product."""


def cut_rows(scores: Tensor, counts: Tensor | None) -> Tensor:
    """Scores `[G, R, N]` with -inf from unit `counts[g]` on."""
    if counts is None:
        return scores
    beyond = torch.arange(scores.shape[-1], device=scores.device) >= counts.unsqueeze(-1)
    return scores.masked_fill(beyond.unsqueeze(1), -torch.inf)


def in_blocks(score: Callable[[Tensor], Tensor], units: Tensor) -> Tensor:
    """The scores `[G, R, N]` of `units` `[G, N, W]`, by products of one shape: the last block is filled up."""
    total = units.shape[1]
    blocks = [
        score(F.pad(units[:, begin : begin + _BLOCK], (0, 0, 0, max(0, begin + _BLOCK - total))).contiguous())
        for begin in range(0, max(total, 1), _BLOCK)
    ]
    return torch.cat(blocks, -1)[..., :total]
