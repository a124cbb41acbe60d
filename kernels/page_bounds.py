"""Per-page minima and maxima of keys, and the score no key of a page can exceed.

Shapes  keys [G, P*L, D]  ->  bounds [G, P, 2*D], maxima first
        q [G, R, D], bounds [G, P, 2*D]  ->  scores [G, R, P]      counts int [G], pages of each row (None: P)
Formula score = sum_d max(q_d * lo_d, q_d * hi_d) = max(q, 0) . hi + min(q, 0) . lo;  -inf from page counts[g] on
Dtypes  bounds keep the keys' dtype (a bound must not be rounded inward); scores fp32
On CUDA both read their input once. Scores are no matrix product there: the bounds must hold in fp32, and in fp32 that
        takes as long by hand, without padding R to 16 rows.
Paper   Quest (arXiv 2406.10774)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .ragged import cut_rows, in_blocks

_KEYS = 32
"""The keys of a page that a program looks at together."""
_BLOCK_ITEMS = 4096
"""The numbers of one bound that a program holds: 32 of each thread's registers."""


def page_bounds_reference(keys: Tensor, page_size: int) -> Tensor:
    """The largest and the smallest key of each page per channel, page by page."""
    groups, tokens, dim = keys.shape
    pages = keys.reshape(groups, tokens // page_size, page_size, dim)
    return torch.cat([pages.amax(2), pages.amin(2)], -1)


@jit
def _page_bounds_kernel(
    keys: tl.tensor, bounds: tl.tensor, k_g: tl.tensor, k_n: tl.tensor, k_d: tl.tensor, size: tl.tensor,
    DIM: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Computes one page per program. Keys that fill up a block repeat the page's last key, which changes no bound."""
    i_p, i_g = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_l, o_d = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    m_d = o_d < DIM
    b_hi = tl.full([BLOCK_D], -float("inf"), dtype=tl.float32)
    b_lo = tl.full([BLOCK_D], float("inf"), dtype=tl.float32)
    for i_l in range(0, size, BLOCK_L):
        o_n = i_p * size + tl.minimum(i_l + o_l, size - 1)
        p_k = keys + i_g * k_g + o_n[:, None] * k_n + o_d[None, :] * k_d
        b_k = tl.load(p_k, mask=m_d[None, :], other=0.0).to(tl.float32)  # [BLOCK_L, BLOCK_D]
        b_hi, b_lo = tl.maximum(b_hi, tl.max(b_k, 0)), tl.minimum(b_lo, tl.min(b_k, 0))
    p_b = bounds + (i_g * tl.num_programs(0) + i_p) * (2 * DIM) + o_d
    tl.store(p_b, b_hi.to(bounds.dtype.element_ty), mask=m_d)
    tl.store(p_b + DIM, b_lo.to(bounds.dtype.element_ty), mask=m_d)


def page_bounds_triton(keys: Tensor, page_size: int) -> Tensor:
    """Bounds by Triton. Keys may be strided."""
    groups, tokens, dim = keys.shape
    pages = tokens // page_size
    bounds = torch.empty(groups, pages, 2 * dim, dtype=keys.dtype, device=keys.device)
    launch(
        _page_bounds_kernel, (pages, groups), keys, bounds, *keys.stride(), page_size,
        DIM=dim, BLOCK_L=min(_KEYS, block_of(page_size)), BLOCK_D=block_of(dim), num_warps=4,
    )  # fmt: skip
    return bounds


def page_bounds(keys: Tensor, page_size: int) -> Tensor:
    """Bounds of all pages. Raises ValueError if the keys are not whole pages."""
    if keys.shape[1] % page_size:
        raise ValueError(f"{keys.shape[1]} keys are not whole pages of {page_size}")
    return (page_bounds_triton if uses_triton(keys) else page_bounds_reference)(keys, page_size)


def bound_scores_reference(q: Tensor, bounds: Tensor, counts: Tensor | None = None) -> Tensor:
    """The first form of the formula."""
    hi, lo = bounds.float().unsqueeze(1).chunk(2, -1)
    query = q.float().unsqueeze(2)
    return cut_rows(torch.maximum(query * lo, query * hi).sum(-1), counts)


@jit
def _bound_scores_kernel(
    q: tl.tensor, bounds: tl.tensor, counts: tl.tensor, hi: tl.tensor, lo: tl.tensor,
    q_g: tl.tensor, q_r: tl.tensor, q_d: tl.tensor, b_g: tl.tensor, b_p: tl.tensor, b_d: tl.tensor,
    n_g: tl.tensor, pages: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Scores a block of pages, read once for all query heads: upper bounds go to `hi`, lower bounds to `lo` unless that
    is None."""
    i_p, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_p, o_d = i_p * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64), tl.arange(0, BLOCK_D)
    held = pages if counts is None else tl.load(counts + i_g * n_g)
    m_p, m_d = o_p < pages, o_d < DIM
    m_b = (o_p < held)[:, None] & m_d[None, :]
    at = bounds + i_g * b_g + o_p[:, None] * b_p + o_d[None, :] * b_d
    b_top = tl.load(at, mask=m_b, other=0.0).to(tl.float32)  # [BLOCK_P, BLOCK_D]
    b_bottom = tl.load(at + DIM * b_d, mask=m_b, other=0.0).to(tl.float32)
    for i_r in range(HEADS):
        b_q = tl.load(q + i_g * q_g + i_r * q_r + o_d * q_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        row = (i_g * HEADS + i_r) * pages + o_p
        b_hi = tl.sum(tl.maximum(b_q * b_top, b_q * b_bottom), 1)
        tl.store(hi + row, tl.where(o_p < held, b_hi, -float("inf")), mask=m_p)
        if lo is not None:
            b_lo = tl.sum(tl.minimum(b_q * b_top, b_q * b_bottom), 1)
            tl.store(lo + row, tl.where(o_p < held, b_lo, -float("inf")), mask=m_p)


def both_bounds_triton(
    q: Tensor, bounds: Tensor, counts: Tensor | None = None, *, lower: bool
) -> tuple[Tensor, Tensor | None]:
    """Upper and, if asked for, lower bounds of the scores, fp32 `[G, R, P]`. Inputs may be strided, counts expanded."""
    groups, heads, dim = q.shape
    pages = bounds.shape[1]
    hi = torch.empty(groups, heads, pages, dtype=torch.float32, device=q.device)
    lo = torch.empty(hi.shape, dtype=hi.dtype, device=hi.device) if lower else None
    block = max(1, _BLOCK_ITEMS // block_of(dim))
    launch(
        _bound_scores_kernel, (cdiv(pages, block), groups), q, bounds, counts, hi, lo, *q.stride(), *bounds.stride(),
        0 if counts is None else counts.stride(0), pages,
        HEADS=heads, DIM=dim, BLOCK_P=block, BLOCK_D=block_of(dim), num_warps=4,
    )  # fmt: skip
    return hi, lo


def bound_scores_triton(q: Tensor, bounds: Tensor, counts: Tensor | None = None) -> Tensor:
    """The first form of the formula."""
    return both_bounds_triton(q, bounds, counts, lower=False)[0]


def bound_scores(q: Tensor, bounds: Tensor, counts: Tensor | None = None) -> Tensor:
    """Scores by matrix products on a CPU (the second form), with bounds first: they are then read row by row at full
    speed. One product, or with `counts` one for each run of pages, so that no score depends on P."""
    if uses_triton(q, bounds, counts):
        return bound_scores_triton(q, bounds, counts)
    query = q.float()
    signed = torch.cat([query.clamp(min=0), query.clamp(max=0)], -1).transpose(1, 2)
    if counts is None:
        return _products(bounds, signed)
    return cut_rows(in_blocks(lambda some: _products(some, signed), bounds), counts)


def _products(bounds: Tensor, signed: Tensor) -> Tensor:
    return (bounds.float() @ signed).transpose(1, 2).contiguous()
