"""Low-rank factors of a matrix of keys: K ~ A B^T with A = K B.

Shapes  rows [m, W] -> basis [W, r]      rows [n, W], basis [W, r] -> factors [n, r]
        factors [G, n, r], basis [G, D, r] -> rows [G, n, D]
        factors [T, r] of all tokens, basis [G, D, r], ids int [G, n] -> keys [G, n, D] of those tokens, rotated
        by cos, sin fp32 [T, W] as in `rotary` (None: not rotated); from row counts[g] on they are 0
Formula basis: the r eigenvectors of rows^T rows with the largest eigenvalues. They are the right singular
        vectors of rows, so that |rows - rows B B^T| is the least any matrix of rank r attains, at the
        price of one product and an eigenproblem of W x W instead of a decomposition of m x W.
Dtypes  fp16/bf16/fp32; products in fp32, but rows^T rows and its eigenvectors in fp64: it holds squares,
        and fp32 would lose directions 3000 times weaker than the strongest. Results are fp32
"""

from __future__ import annotations

import torch
from torch import Tensor

from .decode_attention import dots
from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .rotary import rotated

GRID = 128
"""Rows per product in `project`."""


def principal_directions(rows: Tensor, rank: int) -> Tensor:
    """The basis `[W, r]` of `rows`, with orthonormal columns. With fewer than `rank` independent rows the remaining
    columns are arbitrary.

    Raises ValueError if `rank` is not between 1 and W.
    """
    width = rows.shape[1]
    if not 1 <= rank <= width:
        raise ValueError(f"rank is between 1 and the {width} columns, not {rank}")
    each = rows.double()
    vectors: Tensor = torch.linalg.eigh(each.T @ each).eigenvectors  # ascending eigenvalues
    return vectors[:, width - rank :].flip(1).float().contiguous()


def project(rows: Tensor, basis: Tensor, *, start: int = 0) -> Tensor:
    """Factors of rows that have the numbers from `start` on in their sequence.

    Products have `GRID` rows, filled up with zeros, at fixed places of the sequence: matrix products of other
    sizes round otherwise, and a row's factors must not depend on which rows it arrived with.
    """
    count = rows.shape[0]
    out = torch.empty(count, basis.shape[1], dtype=torch.float32, device=rows.device)
    block = torch.zeros(GRID, rows.shape[1], dtype=torch.float32, device=rows.device)
    begin = 0
    while begin < count:
        place = (start + begin) % GRID
        end = min(count, begin + GRID - place)
        block[place : place + end - begin] = rows[begin:end]
        out[begin:end] = (block @ basis)[place : place + end - begin]
        begin = end
    return out


def project_reference(rows: Tensor, basis: Tensor) -> Tensor:
    """The formula."""
    return rows.float() @ basis


def rebuild(factors: Tensor, basis: Tensor) -> Tensor:
    """The rows of several groups, each rebuilt with its own part of the basis."""
    return factors.float() @ basis.float().transpose(1, 2)


def rebuild_keys_reference(
    factors: Tensor,
    basis: Tensor,
    ids: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Gather, multiply, rotate."""
    number = torch.arange(ids.shape[1], device=ids.device)
    valid = number < (ids.shape[1] if counts is None else counts.unsqueeze(-1))
    rows = ids.long().where(valid, 0)
    keys = rebuild(factors[rows], basis)
    keys = keys if cos is None or sin is None else rotated(keys, cos[rows], sin[rows])
    return keys.masked_fill(~valid.unsqueeze(-1), 0.0)


@jit
def _product(
    p_f: tl.tensor, p_b: tl.tensor, m_n: tl.tensor, m_d: tl.tensor,
    RANK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Factors, rows from `p_f` [N], times basis rows from `p_b` [D]."""
    b_k = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for i_k in range(0, RANK, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = (o_k < RANK)[None, :]
        b_f = tl.load(p_f[:, None] + o_k[None, :], mask=m_n[:, None] & m_k, other=0.0)
        b_k += dots(b_f, tl.load(p_b[:, None] + o_k[None, :], mask=m_d[:, None] & m_k, other=0.0))
    return b_k


@jit
def _rebuild_kernel(
    factors: tl.tensor, basis: tl.tensor, ids: tl.tensor, cos: tl.tensor, sin: tl.tensor, counts: tl.tensor,
    keys: tl.tensor, count: tl.tensor, DIM: tl.constexpr, RANK: tl.constexpr, TURNED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """A block of tokens of one KV head: the channels of a pair in two products, those that stay in a third."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m_in = o_n < count
    m_n = m_in if counts is None else m_in & (o_n < tl.load(counts + i_g))
    b_id = tl.load(ids + i_g * count + o_n, mask=m_n, other=0).to(tl.int64)
    p_f, p_b, p_o = factors + b_id * RANK, basis + i_g * DIM * RANK, keys + (i_g * count + o_n) * DIM
    if TURNED > 0:
        o_t = tl.arange(0, BLOCK_T)
        m_t, m_o = o_t < TURNED, m_in[:, None] & (o_t < TURNED)[None, :]
        b_1 = _product(p_f, p_b + o_t * RANK, m_n, m_t, RANK, BLOCK_N, BLOCK_T, BLOCK_K)
        b_2 = _product(p_f, p_b + (TURNED + o_t) * RANK, m_n, m_t, RANK, BLOCK_N, BLOCK_T, BLOCK_K)
        at = b_id[:, None] * TURNED + o_t[None, :]
        b_cos, b_sin = tl.load(cos + at, mask=m_o, other=0.0), tl.load(sin + at, mask=m_o, other=0.0)
        tl.store(p_o[:, None] + o_t[None, :], b_1 * b_cos - b_2 * b_sin, mask=m_o)
        tl.store(p_o[:, None] + (TURNED + o_t)[None, :], b_2 * b_cos + b_1 * b_sin, mask=m_o)
    if 2 * TURNED < DIM:
        o_d = 2 * TURNED + tl.arange(0, BLOCK_D)
        b_k = _product(p_f, p_b + o_d * RANK, m_n, o_d < DIM, RANK, BLOCK_N, BLOCK_D, BLOCK_K)
        tl.store(p_o[:, None] + o_d[None, :], b_k, mask=m_in[:, None] & (o_d < DIM)[None, :])


def rebuild_keys_triton(
    factors: Tensor,
    basis: Tensor,
    ids: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """In one pass: neither gathered factors nor un-rotated keys are written."""
    groups, dim, rank = basis.shape
    count, turned = ids.shape[1], 0 if cos is None else cos.shape[1]
    keys = torch.empty(groups, count, dim, dtype=torch.float32, device=ids.device)
    block = 64 if dim <= 128 else 32
    launch(
        _rebuild_kernel, (cdiv(count, block), groups), factors, basis, ids, cos, sin, counts, keys, count,
        DIM=dim, RANK=rank, TURNED=turned, BLOCK_N=block, BLOCK_T=block_of(turned, 16),
        BLOCK_D=block_of(dim - 2 * turned, 16), BLOCK_K=32, num_warps=8, num_stages=2,
    )  # fmt: skip
    return keys


def rebuild_keys(
    factors: Tensor,
    basis: Tensor,
    ids: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """All contiguous; for decode that stays on the GPU. Raises ValueError on shapes that do not fit the contract."""
    if factors.shape[1] != basis.shape[2] or ids.shape[0] != basis.shape[0] or (cos is None) != (sin is None):
        raise ValueError(
            f"factors {list(factors.shape)}, basis {list(basis.shape)}, ids {list(ids.shape)}: expected [T, r], "
            "[G, D, r], [G, n], and cos and sin together or not at all"
        )
    if cos is not None and (sin is None or sin.shape != cos.shape or not 1 <= cos.shape[1] <= basis.shape[1] // 2):
        raise ValueError(f"cos {list(cos.shape)}: expected [T, W] twice, 2W at most {basis.shape[1]}")
    for name, given in (("factors", factors), ("basis", basis), ("ids", ids), ("cos", cos), ("sin", sin)):
        if given is not None and not given.is_contiguous():
            raise ValueError(f"{name}: expected contiguous memory, got strides {list(given.stride())}")
    op = rebuild_keys_triton if uses_triton(factors, basis, ids, cos, sin, counts) else rebuild_keys_reference
    return op(factors, basis, ids, cos, sin, counts)
