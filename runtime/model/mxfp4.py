"""MXFP4 as OpenAI's directories have it: numbers of four bits, 32 of them with one power of two.

Byte j of a block holds numbers 2j, in its lower half, and 2j + 1. GGUF's blocks of this name have another order.

Shapes  blocks uint8 [..., N, 16]   scales uint8 [..., N]   ->   [..., 32 N]
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
"""Behind the name of a packed weight: its two tensors."""
NUMBERS = 32
"""Of a block."""
_BIAS = 127
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def part_of(name: str) -> tuple[str, str]:
    """The weight that a tensor of that name is a part of, and which part: BLOCKS, SCALES or ""."""
    for part in (BLOCKS, SCALES):
        if name.endswith(part):
            return name.removesuffix(part), part
    return name, ""


def expanded(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers, one of the outermost dimension at a time. They are exact in bfloat16 and fp32."""
    out = torch.empty(*scales.shape[:-1], scales.shape[-1] * NUMBERS, dtype=dtype)
    values = torch.tensor([*_SIZES, *(-size for size in _SIZES)], dtype=torch.float32)
    for some, exponents, to in zip(blocks, scales, out, strict=True):
        halves = torch.stack([some & 15, some >> 4], -1).flatten(-2)
        to.copy_(torch.ldexp(values[halves.int()], exponents.int().unsqueeze(-1) - _BIAS).flatten(-2))
    return out
