"""One score for each token that is kept as an anchor and a code, over all query heads of a KV head.

Shapes  q fp32 [G, R, D]   basis fp32 [G, W, D]   codebooks fp32 [G, M, W/M, C]   codes uint8 [G, N, M]
        anchors [G, S, D], each of `segment` tokens   counts int [G], tokens of each row   ->  fp32 [G, N]
Formula scores[g,r,j] = q . anchors[g, j // segment] + sum_m (q . basis_m) . codebooks_m[codes[g,j,m]]
        result mean_r softmax_j scores[g,r,j], over the first counts[g] tokens; from there on it may be anything
Dtypes  anchors of any float type; products and sums in fp32
Ragged  codes and anchors behind those of counts[g] tokens are not used, whatever they are; the result does not depend
        on N and S, to the bit. The last segment may hold fewer tokens than others
Trust   counts <= N and counts <= S * segment: not checked, which would wait for the device
On CUDA three launches: tables of the products with all centroids, and the products with all anchors; for each block of
tokens the largest score and a sum; the scores once more, and their shares of those sums, joined. Scores of query heads
are never written: 16 bytes a token with four of them, where the codes that they are made of again have six.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .group_softmax import MOST_PARTS, group_softmax, join_blocks, joined
from .key_scores import key_scores
from .launch import block_of, cdiv, jit, launch, tl, uses_triton
from .pq_scores import pq_scores, pq_tables

_BLOCK_ITEMS = 4096
"""The scores, or numbers of anchors, that a program holds: 32 of each thread's registers."""


def code_scores_reference(
    q: Tensor, basis: Tensor, codebooks: Tensor, codes: Tensor, anchors: Tensor, counts: Tensor, *, segment: int
) -> Tensor:
    """The formula for tokens that are decoded first, in float64. From counts[g] on it is NaN."""
    groups, room = codes.shape[:2]
    each = codes.long().permute(0, 2, 1).unsqueeze(2).expand(-1, -1, codebooks.shape[2], -1)
    coefficients = codebooks.double().gather(3, each).permute(0, 3, 1, 2).flatten(2)  # [G, N, W]
    found = torch.full((groups, room), torch.nan, dtype=torch.float32, device=q.device)
    for g, count in enumerate(counts.tolist()):
        keys = anchors[g].double().repeat_interleave(segment, 0)[:count] + coefficients[g, :count] @ basis[g].double()
        found[g, :count] = torch.softmax(q[g].double() @ keys.T, -1).mean(0)
    return found


def _code_scores_torch(
    q: Tensor, basis: Tensor, codebooks: Tensor, codes: Tensor, anchors: Tensor, counts: Tensor, segment: int
) -> Tensor:
    """The formula by tables, with sums and products in blocks of a fixed size."""
    tables = pq_tables(q @ basis.transpose(1, 2), codebooks.transpose(2, 3))
    of_anchors = key_scores(q, anchors, (counts + segment - 1) // segment).repeat_interleave(segment, -1)
    scores = pq_scores(tables, codes, counts)
    return group_softmax(scores.add_(of_anchors[..., : codes.shape[1]]), counts)


@partial(jit, unaligned=["a_g", "segments"])
def _prepare_kernel(
    q: tl.tensor, basis: tl.tensor, codebooks: tl.tensor, anchors: tl.tensor, counts: tl.tensor, tables: tl.tensor,
    anchored: tl.tensor, q_g: tl.tensor, q_r: tl.tensor, q_d: tl.tensor, a_g: tl.tensor, a_s: tl.tensor,
    a_d: tl.tensor, n_g: tl.tensor, segments: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr,
    SEGMENT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """The first programs of a KV head make a table each, `[C, R]`; the others score a block of anchors, `[S, R]`."""
    i_m, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < DIM
    if i_m < PARTS:
        o_w, o_c, row = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_C), i_g * PARTS + i_m
        m_w, m_c = o_w < WIDTH, o_c < SIZE
        p_b = basis + (row * WIDTH + o_w[:, None]) * DIM + o_d[None, :]
        b_basis = tl.load(p_b, mask=m_w[:, None] & m_d[None, :], other=0.0)  # [BLOCK_W, BLOCK_D]
        p_c = codebooks + (row * WIDTH + o_w[:, None]) * SIZE + o_c[None, :]
        b_book = tl.load(p_c, mask=m_w[:, None] & m_c[None, :], other=0.0)  # [BLOCK_W, BLOCK_C]
        for i_r in range(HEADS):
            b_q = tl.load(q + i_g * q_g + i_r * q_r + o_d * q_d, mask=m_d, other=0.0)
            b_x = tl.sum(b_basis * b_q[None, :], 1)
            tl.store(tables + (row * SIZE + o_c) * HEADS + i_r, tl.sum(b_book * b_x[:, None], 0), mask=m_c)
    else:
        first, held = (i_m - PARTS) * BLOCK_S, tl.cdiv(tl.load(counts + i_g * n_g), SEGMENT)
        if first < held:
            o_s = first + tl.arange(0, BLOCK_S)
            m_s = o_s < held
            p_a = anchors + i_g * a_g + o_s[:, None].to(tl.int64) * a_s + o_d[None, :] * a_d
            b_a = tl.load(p_a, mask=m_s[:, None] & m_d[None, :], other=0.0).to(tl.float32)  # [BLOCK_S, BLOCK_D]
            for i_r in range(HEADS):
                b_q = tl.load(q + i_g * q_g + i_r * q_r + o_d * q_d, mask=m_d, other=0.0)
                tl.store(anchored + (i_g * segments + o_s) * HEADS + i_r, tl.sum(b_a * b_q[None, :], 1), mask=m_s)


@jit
def _block_scores(
    p_t: tl.tensor, p_a: tl.tensor, p_c: tl.tensor, c_n: tl.tensor, c_m: tl.tensor, o_n: tl.tensor, count: tl.tensor,
    HEADS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, SEGMENT: tl.constexpr, BLOCK_R: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores of tokens `o_n` [N, R], -inf from `count` on."""
    o_r, m_n = tl.arange(0, BLOCK_R), o_n < count
    m_s = m_n[:, None] & (o_r < HEADS)[None, :]
    b_s = tl.load(p_a + (o_n // SEGMENT)[:, None] * HEADS + o_r[None, :], mask=m_s, other=0.0)
    for i_m in range(PARTS):
        b_c = tl.load(p_c + o_n.to(tl.int64) * c_n + i_m * c_m, mask=m_n, other=0).to(tl.int32)
        b_s += tl.load(p_t + (i_m * SIZE + b_c)[:, None] * HEADS + o_r[None, :], mask=m_s, other=0.0)
    return tl.where(m_n[:, None], b_s, -float("inf"))


@partial(jit, unaligned=["c_g", "segments", "blocks"])
def _code_sums_kernel(
    tables: tl.tensor, anchored: tl.tensor, codes: tl.tensor, counts: tl.tensor, tops: tl.tensor, sums: tl.tensor,
    c_g: tl.tensor, c_n: tl.tensor, c_m: tl.tensor, n_g: tl.tensor, segments: tl.tensor, blocks: tl.tensor,
    HEADS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:  # fmt: skip
    """The largest score of a block for each query head, and the sum of exp(score - largest)."""
    i_n, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    count = tl.load(counts + i_g * n_g).to(tl.int32)
    if i_n * BLOCK < count:
        b_s = _block_scores(
            tables + i_g * (PARTS * SIZE * HEADS), anchored + i_g * segments * HEADS, codes + i_g * c_g, c_n, c_m,
            i_n * BLOCK + tl.arange(0, BLOCK), count, HEADS, PARTS, SIZE, SEGMENT, BLOCK_R,
        )  # fmt: skip
        b_top, o_r = tl.max(b_s, 0), tl.arange(0, BLOCK_R)
        at = (i_g * blocks + i_n) * HEADS + o_r
        tl.store(tops + at, b_top, mask=o_r < HEADS)
        tl.store(sums + at, tl.sum(tl.exp(b_s - b_top[None, :]), 0), mask=o_r < HEADS)


@partial(jit, unaligned=["c_g", "segments", "blocks", "room"])
def _code_shares_kernel(
    tables: tl.tensor, anchored: tl.tensor, codes: tl.tensor, counts: tl.tensor, tops: tl.tensor, sums: tl.tensor,
    shares: tl.tensor, c_g: tl.tensor, c_n: tl.tensor, c_m: tl.tensor, n_g: tl.tensor, segments: tl.tensor,
    blocks: tl.tensor, room: tl.tensor,
    HEADS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr, JOINED: tl.constexpr,
) -> None:  # fmt: skip
    """Joins the sums of all blocks of a row, in one order whoever does it, and writes the shares of some blocks."""
    i_p, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64)
    count = tl.load(counts + i_g * n_g).to(tl.int32)
    held, at = tl.cdiv(count, BLOCK), i_g * blocks * HEADS
    b_top, b_sum = join_blocks(tops + at, sums + at, held, HEADS, BLOCK_R, JOINED)
    b_scale = tl.where(tl.arange(0, BLOCK_R) < HEADS, 1.0 / (b_sum * HEADS), 0.0)
    for i_n in range(i_p, held, tl.num_programs(0)):
        o_n = i_n * BLOCK + tl.arange(0, BLOCK)
        b_s = _block_scores(
            tables + i_g * (PARTS * SIZE * HEADS), anchored + i_g * segments * HEADS, codes + i_g * c_g, c_n, c_m,
            o_n, count, HEADS, PARTS, SIZE, SEGMENT, BLOCK_R,
        )  # fmt: skip
        b_p = tl.sum(tl.exp(b_s - b_top[None, :]) * b_scale[None, :], 1)
        tl.store(shares + i_g * room + o_n, b_p, mask=o_n < count)


def code_scores_triton(
    q: Tensor, basis: Tensor, codebooks: Tensor, codes: Tensor, anchors: Tensor, counts: Tensor, *, segment: int,
    block: int | None = None, parts: int = MOST_PARTS,
) -> Tensor:  # fmt: skip
    """The formula by Triton. `block` tokens are added up together, and `parts` programs share a row's blocks."""
    (groups, heads, dim), (_, books, width, size), room = q.shape, codebooks.shape, codes.shape[1]
    block = block or max(32, _BLOCK_ITEMS // block_of(heads))
    segments, blocks = min(anchors.shape[1], cdiv(room, segment)), cdiv(room, block)
    some = max(1, _BLOCK_ITEMS // block_of(dim))

    def empty(*shape: int) -> Tensor:
        return torch.empty(groups, *shape, dtype=torch.float32, device=q.device)

    tables, anchored = empty(books, size, heads), empty(segments, heads)
    tops, sums, shares = empty(blocks, heads), empty(blocks, heads), empty(room)
    launch(
        _prepare_kernel, (books + cdiv(segments, some), groups), q, basis, codebooks, anchors, counts, tables, anchored,
        *q.stride(), *anchors.stride(), counts.stride(0), segments,
        HEADS=heads, DIM=dim, PARTS=books, WIDTH=width, SIZE=size, SEGMENT=segment,
        BLOCK_S=some, BLOCK_D=block_of(dim), BLOCK_W=block_of(width), BLOCK_C=block_of(size), num_warps=4,
    )  # fmt: skip
    given: dict[str, Any] = {"HEADS": heads, "PARTS": books, "SIZE": size, "SEGMENT": segment, "BLOCK": block}
    given |= {"BLOCK_R": block_of(heads), "num_warps": 4}
    found = tables, anchored, codes, counts, tops, sums
    numbers = *codes.stride(), counts.stride(0), segments, blocks
    launch(_code_sums_kernel, (blocks, groups), *found, *numbers, **given)
    launch(
        _code_shares_kernel, (min(blocks, parts), groups), *found, shares, *numbers, room,
        JOINED=joined(heads), **given,
    )  # fmt: skip
    return shares


def code_scores(
    q: Tensor, basis: Tensor, codebooks: Tensor, codes: Tensor, anchors: Tensor, counts: Tensor, *, segment: int
) -> Tensor:
    """The scores of all tokens that exist. Raises ValueError if basis or codebooks are not contiguous; others may be
    strided, and counts expanded."""
    if not basis.is_contiguous() or not codebooks.is_contiguous():
        raise ValueError("basis and codebooks are contiguous")
    if uses_triton(q, basis, codebooks, codes, anchors, counts):
        return code_scores_triton(q, basis, codebooks, codes, anchors, counts, segment=segment)
    return _code_scores_torch(q, basis, codebooks, codes, anchors, counts, segment)
