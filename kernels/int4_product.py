"""Products with weights of 4 bits, packed as PyTorch's kernel for CUDA reads them.

Shapes  x bf16 [B, K]   codes uint8 [N, K], from 0 to 15   packed int32 [N / 8, K / 16 I, 32, I / 2], I of 2, 4 or 8
        scales bf16 [K / S, N, 2]: of each S numbers of a row (32, 64 or 128) their step and their middle
Formula w = (code - 8) * step + middle, rounded to bf16;   out = x @ w.T, sums in fp32, bf16 [B, N]
Layout  [n][i][t][j] has 32 numbers of row 8 n + t / 4 in its lanes t % 4, those from 32 (i I / 2 + j) on. A lane's
        nibble 4 h + p, the lowest first, is number 8 p + 2 (t % 4) + h of them.
State   PyTorch's kernel has not been run with this; its layout is read from its source (`ATen/native/cuda/int4mm.cu`),
        and `tests/gpu` holds both beside each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = (128, 64, 32)
"""Numbers of a row that may share a step and a middle."""
_TILE, _ROWS = 16, 8
_INNER = (8, 4, 2)
"""I, the best first: a lane reads so many bytes twice."""
_MIDDLE = 8


def inner_tiles(columns: int) -> int:
    """I of weights with so many columns."""
    return next(inner for inner in _INNER if columns % (inner * _TILE) == 0)


def lacking(rows: int, columns: int) -> str | None:
    """What a weight `[rows, columns]` lacks to be packed; None: nothing."""
    if rows % _ROWS or columns % GROUPS[-1]:
        return f"rows in multiples of {_ROWS} and columns in multiples of {GROUPS[-1]}, not {[rows, columns]}"
    return None


def pack(codes: Tensor) -> Tensor:
    """Pack codes uint8 `[N, K]`."""
    rows, columns = codes.shape
    inner = inner_tiles(columns)
    if codes.device.type != "cpu":
        halves = codes.reshape(rows, -1, 2)
        found: Tensor = torch._convert_weight_to_int4pack(halves[..., 0] << 4 | halves[..., 1], inner)
        return found
    # n, t / 4, i, j, the two bits of p, t % 4, h
    split = codes.reshape(rows // _ROWS, _ROWS, -1, inner // 2, 2, 2, 4, 2).permute(0, 2, 1, 6, 3, 7, 4, 5)
    pairs = split.reshape(rows // _ROWS, -1, 32, inner // 2 * 4, 2)
    return (pairs[..., 0] | pairs[..., 1] << 4).contiguous().view(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """What `pack` was given less 8, int8 `[N, K]`."""
    tiles, outer, _, words = packed.shape
    signed = packed.view(torch.int8) ^ -120  # the highest bit of either nibble: now they are two's complements
    nibbles = torch.stack([signed << 4 >> 4, signed >> 4], -1)
    split = nibbles.view(tiles, outer, _ROWS, 4, words, 2, 2, 2).permute(0, 2, 1, 4, 6, 7, 3, 5)
    return split.reshape(tiles * _ROWS, -1)


def widen_int4(packed: Tensor, scales: Tensor) -> Tensor:
    """The weight bf16 `[N, K]` that is packed."""
    steps, middles = scales.transpose(0, 1).unsqueeze(-2).unbind(-1)
    codes = unpack(packed).to(scales.dtype)
    return torch.addcmul(middles, codes.view(len(codes), scales.shape[0], -1), steps).flatten(1)


def int4_product_reference(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """The formula."""
    return (x.float() @ widen_int4(packed, scales).float().T).to(x.dtype)


def int4_product(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """Multiply x with a packed weight."""
    if not x.is_cuda:
        return int4_product_reference(x, packed, scales)
    columns = packed.shape[1] * packed.shape[3] * 2 * _TILE
    found: Tensor = torch._weight_int4pack_mm(
        x.contiguous(), packed.contiguous(), columns // scales.shape[0], scales.contiguous()
    )
    return found
