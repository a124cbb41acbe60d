"""One score per unit from those of all query heads of a KV head: what each head's softmax gives it, on average.

Shapes  scores [G, R, N] fp32, counts int [G], units of each row   ->  [G, N] fp32
Formula shares[g,r] = softmax over the first counts[g] units of scores[g,r];  result mean_r shares[g,r,j], or with
        `logs` log sum_r shares[g,r,j], which tells small ones apart. From unit counts[g] on it may be anything
Ragged  scores from unit counts[g] on are not used, whatever they are; the result does not depend on N, to the bit
On CUDA by three launches: the largest score and the sum of each block, those of a row, the shares.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import cdiv, jit, launch, tl, uses_triton
from .ragged import cut_rows

_BLOCK = 1024
"""Units that are added up together."""
_JOINED = 256
"""Blocks whose sums a program looks at together."""


def group_softmax_reference(scores: Tensor, counts: Tensor, *, logs: bool = False) -> Tensor:
    """The formula."""
    shares = torch.log_softmax(cut_rows(scores, counts), -1)
    return shares.logsumexp(1) if logs else shares.exp().mean(1)


def _group_softmax_torch(scores: Tensor, counts: Tensor, logs: bool) -> Tensor:
    """The formula, with each sum over a row taken in blocks, and the sums of blocks in the same way."""
    if not scores.shape[-1]:
        return scores[:, 0]
    scores = cut_rows(scores, counts)
    apart = scores - scores.amax(-1, keepdim=True)
    shares = total = apart.exp()
    while total.shape[-1] > 1:
        total = F.pad(total, (0, -total.shape[-1] % _BLOCK))
        total = total.view(*total.shape[:2], -1, _BLOCK).sum(-1)
    return (apart - total.log()).logsumexp(1) if logs else (shares / total).mean(1)


@jit
def _block_sums_kernel(
    scores: tl.tensor, counts: tl.tensor, tops: tl.tensor, sums: tl.tensor, total: tl.tensor, blocks: tl.tensor,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The largest score of a block for each query head, and the sum of exp(score - largest)."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n, held = i_n * BLOCK + tl.arange(0, BLOCK), tl.load(counts + i_g)
    if i_n * BLOCK < held:
        for i_r in range(HEADS):
            row = i_g * HEADS + i_r
            b_s = tl.load(scores + row * total + o_n, mask=o_n < held, other=-float("inf"))
            b_top = tl.max(b_s, 0)
            tl.store(tops + row * blocks + i_n, b_top)
            tl.store(sums + row * blocks + i_n, tl.sum(tl.exp(b_s - b_top), 0))


@jit
def _row_sums_kernel(
    tops: tl.tensor, sums: tl.tensor, counts: tl.tensor, rows: tl.tensor, blocks: tl.tensor,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, JOINED: tl.constexpr,
) -> None:  # fmt: skip
    """The same of a whole row, one per program, from those of its blocks."""
    i_r, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, used = i_g * HEADS + i_r, tl.cdiv(tl.load(counts + i_g), BLOCK)
    b_top = tl.full([JOINED], -float("inf"), dtype=tl.float32)
    for i_b in range(0, used, JOINED):
        o_b = i_b + tl.arange(0, JOINED)
        b_top = tl.maximum(b_top, tl.load(tops + row * blocks + o_b, mask=o_b < used, other=-float("inf")))
    top = tl.max(b_top, 0)
    b_sum = tl.zeros([JOINED], dtype=tl.float32)
    for i_b in range(0, used, JOINED):
        o_b = i_b + tl.arange(0, JOINED)
        b_t = tl.load(tops + row * blocks + o_b, mask=o_b < used, other=-float("inf"))
        b_sum += tl.load(sums + row * blocks + o_b, mask=o_b < used, other=0.0) * tl.exp(b_t - top)
    tl.store(rows + row * 2, top)
    tl.store(rows + row * 2 + 1, tl.sum(b_sum, 0))


@jit
def _shares_kernel(
    scores: tl.tensor, counts: tl.tensor, rows: tl.tensor, shares: tl.tensor, total: tl.tensor,
    HEADS: tl.constexpr, LOGS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The shares of a block."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n, held = i_n * BLOCK + tl.arange(0, BLOCK), tl.load(counts + i_g)
    m_n = o_n < held
    if i_n * BLOCK < held:
        b_sum = tl.zeros([BLOCK], dtype=tl.float32)
        b_top = tl.full([BLOCK], -float("inf"), dtype=tl.float32)
        if LOGS:
            for i_r in range(HEADS):
                row = i_g * HEADS + i_r
                top, log = tl.load(rows + row * 2), tl.log(tl.load(rows + row * 2 + 1))
                b_s = tl.load(scores + row * total + o_n, mask=m_n, other=top) - top - log
                b_top = tl.maximum(b_top, b_s)
        for i_r in range(HEADS):
            row = i_g * HEADS + i_r
            top, sums = tl.load(rows + row * 2), tl.load(rows + row * 2 + 1)
            b_s = tl.load(scores + row * total + o_n, mask=m_n, other=top) - top
            if LOGS:
                b_sum += tl.exp(b_s - tl.log(sums) - b_top)
            else:
                b_sum += tl.exp(b_s) / sums
        b_shares = b_top + tl.log(b_sum) if LOGS else b_sum / HEADS
        tl.store(shares + i_g * total + o_n, b_shares, mask=m_n)


def group_softmax_triton(scores: Tensor, counts: Tensor, *, logs: bool = False) -> Tensor:
    """The formula by Triton."""
    groups, heads, total = scores.shape
    scores, counts, blocks = scores.contiguous(), counts.contiguous(), cdiv(total, _BLOCK)
    tops = torch.empty(groups, heads, blocks, dtype=torch.float32, device=scores.device)
    sums = torch.empty(groups, heads, blocks, dtype=torch.float32, device=scores.device)
    rows = torch.empty(groups, heads, 2, dtype=torch.float32, device=scores.device)
    shares = torch.empty(groups, total, dtype=torch.float32, device=scores.device)
    given: dict[str, Any] = {"HEADS": heads, "BLOCK": _BLOCK, "num_warps": 4}
    launch(_block_sums_kernel, (blocks, groups), scores, counts, tops, sums, total, blocks, **given)
    launch(_row_sums_kernel, (heads, groups), tops, sums, counts, rows, blocks, JOINED=_JOINED, **given)
    launch(_shares_kernel, (blocks, groups), scores, counts, rows, shares, total, LOGS=logs, **given)
    return shares


def group_softmax(scores: Tensor, counts: Tensor, *, logs: bool = False) -> Tensor:
    """The mean over query heads of their softmax over units that exist; see above for `logs`."""
    if uses_triton(scores, counts):
        return group_softmax_triton(scores, counts, logs=logs)
    return _group_softmax_torch(scores, counts, logs)
