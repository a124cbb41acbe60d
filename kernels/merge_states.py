"""Merge partial attention over disjoint keys by log-sum-exp.

Shapes  outs: list of [..., D]   lses: list of [...] fp32   -> out [..., D], lse [...]
        partial outs [S, n, D], lses [S, n]                 -> out [n, D], lse [n]
Formula lse = logsumexp_i lse_i;  out = sum_i exp(lse_i - lse) out_i
Dtypes  weights and sum in fp32, out in the dtype of the parts; a part that saw nothing has lse -inf and any
        finite out; a row that no part saw is 0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import block_of, jit, launch, tl, uses_triton

_PARTS = 16
"""Partial results summed at a time."""


def merge_states_reference(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The formula, part by part."""
    stacked = torch.stack(list(lses))
    lse = torch.logsumexp(stacked, 0)
    total = torch.zeros_like(outs[0], dtype=torch.float32)
    for out, part in zip(outs, stacked, strict=True):
        total.addcmul_(out.float(), torch.exp(part - lse).nan_to_num_(0.0).unsqueeze(-1))
    return total.to(outs[0].dtype), lse


@jit
def _merge_kernel(
    outs: tl.tensor, lses: tl.tensor, out: tl.tensor, lse: tl.tensor, parts: tl.tensor, rows: tl.tensor,
    DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Merges one row per program, with its partial results in blocks, each rescaled to the largest lse so far."""
    i_n = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    largest, total = -float("inf"), 0.0
    b_out = tl.zeros([BLOCK_D], dtype=tl.float32)
    for i_s in range(0, parts, BLOCK_S):
        o_s = i_s + tl.arange(0, BLOCK_S)
        at = o_s.to(tl.int64) * rows + i_n
        b_lse = tl.load(lses + at, mask=o_s < parts, other=-float("inf"))  # [BLOCK_S]
        m_out = (b_lse > -float("inf"))[:, None] & (o_d < DIM)[None, :]
        b_part = tl.load(outs + at[:, None] * DIM + o_d[None, :], mask=m_out, other=0.0).to(tl.float32)
        new = tl.maximum(largest, tl.max(b_lse, 0))
        base = tl.where(new > -float("inf"), new, 0.0)
        b_w, kept = tl.exp(b_lse - base), tl.exp(largest - base)
        total = total * kept + tl.sum(b_w, 0)
        b_out = b_out * kept + tl.sum(b_part * b_w[:, None], 0)
        largest = new
    safe = tl.where(total > 0, total, 1.0)
    tl.store(out + i_n * DIM + o_d, (b_out / safe).to(out.dtype.element_ty), mask=o_d < DIM)
    tl.store(lse + i_n, largest + tl.log(safe))


def merge_partials(outs: Tensor, lses: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Merge by Triton: contiguous outs `[S, n, D]` and lses `[S, n]` into out `[n, D]` of `dtype` and lse `[n]`."""
    parts, rows, dim = outs.shape
    out = torch.empty(rows, dim, dtype=dtype, device=outs.device)
    lse = torch.empty(rows, dtype=torch.float32, device=outs.device)
    block = min(_PARTS, block_of(parts))
    launch(
        _merge_kernel, (rows,), outs, lses, out, lse, parts, rows,
        DIM=dim, BLOCK_S=block, BLOCK_D=block_of(dim), num_warps=1 if block * dim <= 512 else 4,
    )  # fmt: skip
    return out, lse


def merge_states_triton(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge by Triton: the partial results are stacked once and merged in one pass, which is cheaper than a pass for
    each of two or more."""
    shape = outs[0].shape
    stacked = torch.stack(list(outs)).view(len(outs), -1, shape[-1])
    out, lse = merge_partials(stacked, torch.stack(list(lses)).view(len(outs), -1), outs[0].dtype)
    return out.view(shape), lse.view(shape[:-1])


def merge_states(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge all partial results. Raises ValueError if there is nothing to merge or the lists differ in length."""
    if not outs or len(outs) != len(lses):
        raise ValueError(f"expected one lse per part, got {len(outs)} parts and {len(lses)} lses")
    if len(outs) == 1:
        return outs[0], lses[0]
    merge = merge_states_triton if uses_triton(*outs, *lses) else merge_states_reference
    return merge(outs, lses)
