"""Weights rounded to 8 or 4 bits.

To 8 bits, each row has a scale: its largest number over 127. To 4 bits, each group of a row has a step and a middle, by
which the first of its 16 codes is its least number, and one of the last ones its largest: the one by which the sum of
squared errors is least. So numbers that have steps already, as those of a GGUF file of 4 bits, keep them, wherever a
group does not use all of its codes (docs/decisions/0059).

Shapes  weight [N, K], groups of S numbers
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STEPS = 127
_CODES = 15
_MIDDLE = 8
LAST = (15, 14, 13, 12, 11, 10, 9, 8)
"""Codes that the largest number of a group may have."""


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 `[N, K]`, from -127 to 127, and a scale `[N]` in the weight's dtype."""
    exact = weight.detach().float()
    largest = exact.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = (largest / _STEPS).to(weight.dtype)  # rounded first: steps are of the scale that multiplies them
    codes = torch.round(exact / scale.float().unsqueeze(1)).clamp_(-_STEPS, _STEPS)
    return codes.to(torch.int8), scale


def to_int4(weight: Tensor, group: int, last: Sequence[int] = LAST) -> tuple[Tensor, Tensor]:
    """Codes uint8 `[N, K]`, from 0 to 15, and the steps and middles bf16 `[K / S, N, 2]` of groups of S = `group`.

    Args:
        last: codes to try for the largest number of a group.
    """
    exact = weight.detach().float().view(len(weight), -1, group)
    low, high = exact.aminmax(dim=-1, keepdim=True)
    error, codes, scales = _spread(exact, low, (high - low) / last[0])
    for code in last[1:]:
        other, *found = _spread(exact, low, (high - low) / code)
        is_better = other < error
        error, codes, scales = (
            torch.where(is_better, new, old) for new, old in zip((other, *found), (error, codes, scales), strict=True)
        )
    return (codes.flatten(1) + _MIDDLE).to(torch.uint8), scales.transpose(0, 1).contiguous()


def _spread(exact: Tensor, low: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spread codes over groups `[.., S]` from their least numbers on, a step apart: the sum of squared errors
    `[.., 1]`, codes from -8 to 7, and step and middle `[.., 2]`, to whose rounded values errors are."""
    step = step.clamp_min(torch.finfo(torch.bfloat16).tiny).bfloat16()
    middle = (low + step.float() * _MIDDLE).bfloat16()
    codes = torch.round((exact - middle.float()) / step.float()).clamp_(-_MIDDLE, _CODES - _MIDDLE)
    error = (codes * step.float() + middle.float() - exact).square_().sum(-1, keepdim=True)
    return error, codes, torch.cat([step, middle], -1)
