"""Rotary positions: pairs of channels turned by an angle that grows with the position.

Shapes  keys [.., D]   cos, sin [.., W] of each key's position, 2W <= D   ->  [.., D]
Formula out_d = k_d cos_d - k_(d+W) sin_d;  out_(d+W) = k_(d+W) cos_d + k_d sin_d, d < W;  channels from 2W on stay
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotated(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate keys by the formula. Triton kernels apply the same formula to values in registers."""
    width = cos.shape[-1]
    first, second, rest = keys[..., :width], keys[..., width : 2 * width], keys[..., 2 * width :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
