"""Products with weights of 8 bits, which share a scale for each row.

Shapes  x [B, K]   codes int8 [N, K]   scales [N]   -> out [B, N]
Formula out = (x @ codes.T) * scales
Dtypes  x and scales fp16/bf16/fp32, of which out has that of x; sums in fp32. Codes are exact in each of them.
Callers weights=int8 on a GPU. PyTorch's own `_weight_int8pack_mm` makes x fp32 there and reads the weight again for
        each of its rows; in some versions each thread goes through a row of the weight by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton

_BLOCK_N, _BLOCK_K, _BLOCK_B = 16, 256, 16


def widen_int8(codes: Tensor, scales: Tensor) -> Tensor:
    """The weight `[N, K]` in the dtype of its scales, to which each number is rounded once."""
    return codes.to(scales.dtype).mul_(scales.unsqueeze(1))


def int8_product_reference(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """The formula."""
    return (x.float() @ codes.float().T * scales.float()).to(x.dtype)


@jit
def _int8_product_kernel(
    x: tl.tensor, codes: tl.tensor, scales: tl.tensor, out: tl.tensor, batch: tl.tensor, rows: tl.tensor,
    COLUMNS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """Multiplies BLOCK_N rows of the weight with BLOCK_B rows of x: each code is read once for all of these."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_b = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m_n, m_b = o_n < rows, o_b < batch
    b_out = tl.zeros([BLOCK_N, BLOCK_B], dtype=tl.float32)
    for i_k in range(0, COLUMNS, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < COLUMNS
        b_w = tl.load(codes + o_n[:, None] * COLUMNS + o_k[None, :], mask=m_n[:, None] & m_k[None, :], other=0)
        b_x = tl.load(x + o_b[:, None] * COLUMNS + o_k[None, :], mask=m_b[:, None] & m_k[None, :], other=0.0)
        b_out = tl.dot(b_w.to(tl.float32).to(b_x.dtype), tl.trans(b_x), b_out, input_precision="ieee")
    b_scale = tl.load(scales + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_out = (b_out * b_scale[:, None]).to(out.dtype.element_ty)
    tl.store(out + o_b[None, :] * rows + o_n[:, None], b_out, mask=m_n[:, None] & m_b[None, :])


def int8_product_triton(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """The formula, in Triton."""
    batch, columns = x.shape
    rows = len(codes)
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    launch(
        _int8_product_kernel, (cdiv(rows, _BLOCK_N), cdiv(batch, _BLOCK_B)),
        x.contiguous(), codes.contiguous(), scales.contiguous(), out, batch, rows,
        COLUMNS=columns, BLOCK_B=_BLOCK_B, BLOCK_N=_BLOCK_N, BLOCK_K=min(_BLOCK_K, block_of(columns, 16)),
        num_stages=4,
    )  # fmt: skip
    return out


def int8_product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Multiply x with a rounded weight."""
    multiply = int8_product_triton if uses_triton(x, codes, scales) else int8_product_reference
    return multiply(x, codes, scales)
