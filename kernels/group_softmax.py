"""One score per unit from those of all query heads of a KV head: what each head's softmax gives it, on average.

Shapes  scores [G, R, N] fp32, counts int [G], units of each row   ->  [G, N] fp32
Formula shares[g,r] = softmax over the first counts[g] units of scores[g,r];  result mean_r shares[g,r,j], or with
        `logs` log sum_r shares[g,r,j], which tells small ones apart, or with `best` log max_r shares[g,r,j]. From unit
        counts[g] on it may be anything
Ragged  scores from unit counts[g] on are not used, whatever they are; the result does not depend on N, to the bit
On CUDA by two launches: the largest score and the sum of each block; those of a row, joined, and the shares.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .ragged import cut_rows

_BLOCK = 1024
"""Units that are added up together."""
_BLOCK_ITEMS = 4096
"""The scores that a program holds: 32 of each thread's registers."""
_JOINED = 1024
"""Sums of blocks that a program looks at together, of all heads."""
MOST_PARTS = 128
"""Programs that share a row where shares are written: each of them joins the sums of all blocks first."""


def group_softmax_reference(scores: Tensor, counts: Tensor, *, logs: bool = False, best: bool = False) -> Tensor:
    """The formula."""
    shares = torch.log_softmax(cut_rows(scores, counts), -1)
    if best:
        return shares.amax(1)
    return shares.logsumexp(1) if logs else shares.exp().mean(1)


def _group_softmax_torch(scores: Tensor, counts: Tensor, logs: bool, best: bool) -> Tensor:
    """The formula, with each sum over a row taken in blocks, and the sums of blocks in the same way."""
    if not scores.shape[-1]:
        return scores[:, 0]
    scores = cut_rows(scores, counts)
    apart = scores - scores.amax(-1, keepdim=True)
    shares = total = apart.exp()
    while total.shape[-1] > 1:
        total = F.pad(total, (0, -total.shape[-1] % _BLOCK))
        total = total.view(*total.shape[:2], -1, _BLOCK).sum(-1)
    if not (logs or best):
        return _head_by_head(shares / total) / scores.shape[1]
    apart = apart - total.log()
    most = apart.amax(1)
    return most if best else most + _head_by_head((apart - most.unsqueeze(1)).exp()).log()


def _head_by_head(shares: Tensor) -> Tensor:
    """The sum over heads `[G, N]`. PyTorch's own takes another order where a row ends, which follows from N."""
    total = shares[:, 0].clone()
    for head in range(1, shares.shape[1]):
        total.add_(shares[:, head])
    return total


@partial(jit, unaligned=["total"])
def _block_sums_kernel(
    scores: tl.tensor, counts: tl.tensor, tops: tl.tensor, sums: tl.tensor, n_g: tl.tensor, total: tl.tensor,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The largest score of a block for each query head, and the sum of exp(score - largest)."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n, held = i_n * BLOCK + tl.arange(0, BLOCK), tl.load(counts + i_g * n_g)
    at = (i_g * tl.num_programs(0) + i_n) * HEADS
    if i_n * BLOCK < held:
        for i_r in range(HEADS):
            b_s = tl.load(scores + (i_g * HEADS + i_r) * total + o_n, mask=o_n < held, other=-float("inf"))
            b_top = tl.max(b_s, 0)
            tl.store(tops + at + i_r, b_top)
            tl.store(sums + at + i_r, tl.sum(tl.exp(b_s - b_top), 0))


@jit
def join_blocks(
    tops: tl.tensor, sums: tl.tensor, held: tl.tensor,
    HEADS: tl.constexpr, BLOCK_R: tl.constexpr, JOINED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The same of a row, from those of its first `held` blocks [blocks, R]: in one order, whoever does it. It is 0 and
    1 for a row without units, and for heads that only fill up a block."""
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < HEADS
    b_tops = tl.full([JOINED, BLOCK_R], -float("inf"), dtype=tl.float32)
    for i_b in range(0, held, JOINED):
        o_b = i_b + tl.arange(0, JOINED)
        at, m_b = o_b[:, None] * HEADS + o_r[None, :], (o_b < held)[:, None] & m_r[None, :]
        b_tops = tl.maximum(b_tops, tl.load(tops + at, mask=m_b, other=-float("inf")))
    b_top = tl.where(m_r & (held > 0), tl.max(b_tops, 0), 0.0)
    b_sums = tl.zeros([JOINED, BLOCK_R], dtype=tl.float32)
    for i_b in range(0, held, JOINED):
        o_b = i_b + tl.arange(0, JOINED)
        at, m_b = o_b[:, None] * HEADS + o_r[None, :], (o_b < held)[:, None] & m_r[None, :]
        b_t = tl.load(tops + at, mask=m_b, other=-float("inf"))
        b_sums += tl.load(sums + at, mask=m_b, other=0.0) * tl.exp(b_t - b_top[None, :])
    b_sum = tl.sum(b_sums, 0)
    return b_top, tl.where(b_sum > 0, b_sum, 1.0)


@partial(jit, unaligned=["total", "blocks"])
def _shares_kernel(
    scores: tl.tensor, counts: tl.tensor, tops: tl.tensor, sums: tl.tensor, shares: tl.tensor, n_g: tl.tensor,
    total: tl.tensor, blocks: tl.tensor,
    HEADS: tl.constexpr, LOGS: tl.constexpr, BEST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
    JOINED: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Joins the sums of all blocks of a row, and writes the shares of some of its units."""
    i_p, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_r, held = tl.arange(0, BLOCK_R), tl.load(counts + i_g * n_g).to(tl.int32)
    at = i_g * blocks * HEADS
    b_top, b_sum = join_blocks(tops + at, sums + at, tl.cdiv(held, BLOCK), HEADS, BLOCK_R, JOINED)
    for i_n in range(i_p * BLOCK_N, held, tl.num_programs(0) * BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < held
        p_s = scores + (i_g * HEADS + o_r[:, None]) * total + o_n[None, :]
        b_s = tl.load(p_s, mask=(o_r < HEADS)[:, None] & m_n[None, :], other=-float("inf")) - b_top[:, None]
        if LOGS or BEST:
            b_s -= tl.log(b_sum)[:, None]
            b_shares = tl.where(m_n, tl.max(b_s, 0), 0.0)
            if LOGS:
                b_shares += tl.log(tl.where(m_n, tl.sum(tl.exp(b_s - b_shares[None, :]), 0), 1.0))
        else:
            b_shares = tl.sum(tl.exp(b_s) / b_sum[:, None], 0) / HEADS
        tl.store(shares + i_g * total + o_n, b_shares, mask=m_n)


def joined(heads: int) -> int:
    """Sums of blocks that a program looks at together."""
    return max(1, _JOINED // block_of(heads))


def group_softmax_triton(
    scores: Tensor, counts: Tensor, *, logs: bool = False, best: bool = False, parts: int = MOST_PARTS
) -> Tensor:
    """The formula by Triton. `parts` programs share a row's units."""
    groups, heads, total = scores.shape
    scores, blocks, rows = scores.contiguous(), cdiv(total, _BLOCK), block_of(heads)
    tops = torch.empty(groups, blocks, heads, dtype=torch.float32, device=scores.device)
    sums = torch.empty(groups, blocks, heads, dtype=torch.float32, device=scores.device)
    shares = torch.empty(groups, total, dtype=torch.float32, device=scores.device)
    of_blocks, given = (scores, counts, tops, sums), {"HEADS": heads, "BLOCK": _BLOCK, "num_warps": 4}
    launch(_block_sums_kernel, (blocks, groups), *of_blocks, counts.stride(0), total, **given)
    launch(
        _shares_kernel, (min(blocks, parts), groups), *of_blocks, shares, counts.stride(0), total, blocks,
        LOGS=logs and not best, BEST=best, BLOCK_R=rows, JOINED=joined(heads), BLOCK_N=max(32, _BLOCK_ITEMS // rows),
        **given,
    )  # fmt: skip
    return shares


def group_softmax(scores: Tensor, counts: Tensor, *, logs: bool = False, best: bool = False) -> Tensor:
    """The mean over query heads of their softmax over units that exist; see above for `logs` and `best`."""
    if uses_triton(scores, counts):
        return group_softmax_triton(scores, counts, logs=logs, best=best)
    return _group_softmax_torch(scores, counts, logs, best)
