"""Decode attention of a ragged batch over selected units (pages, or parts of them) of a pool of page slots.

Shapes  q [B, G, R, D]   pool [S, G, 2, L, D], keys then values   table int [B, P], slot of each page of a sequence
        ids int [B, G, n], units of `unit` tokens, which divides L   out [B, G, R, D]   lse [B, G, R] fp32
        counts int [B, G] <= n, ids that count (None: all)   lengths int [B], tokens of each sequence (None: no bound)
        bias fp32 [B, G, R, n*unit], added to the scaled scores; -inf drops a token
        cos, sin fp32 [T, W], of positions 0 .. T-1: keys lie un-rotated and are rotated here, 2W <= D
        keys fp32 [B, G, n*unit, D], of the selected tokens: those in the pool are not read. A pool [S, G, 1, L, D] then
        has values alone
Formula softmax(scale * q k^T + bias) v over the tokens of unit i, which have positions i*unit .. i*unit + unit - 1 and
        lie in slot table[b, position // L]; rotated as in `rotary`
Dtypes  q and pool fp16/bf16/fp32; scores, rotation, softmax and sum in fp32, out in q's dtype
Empty   a row that selects nothing, or tokens beyond its length only, has out 0 and lse -inf
Trust   ids that count name pages that the table has, and the table slots that the pool has: not checked, which would
        wait for the device. Ids and slots that do not count may hold anything.
An unsealed tail is a page like others, if its slot is in the table: `lengths` hides what is not written yet.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .decode_attention import accumulate, block_keys, dots, store_part
from .launch import block_of, cdiv, jit, launch, num_splits, tl, uses_triton
from .merge_states import merge_partials
from .rotary import rotated


def paged_attention_reference(
    q: Tensor,
    pool: Tensor,
    table: Tensor,
    ids: Tensor,
    *,
    unit: int,
    scale: float,
    counts: Tensor | None = None,
    lengths: Tensor | None = None,
    bias: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula, on gathered tokens."""
    batch, groups, count = ids.shape
    size = pool.shape[3]
    number = torch.arange(count * unit, device=q.device)
    valid = torch.ones(batch, groups, count * unit, dtype=torch.bool, device=q.device)
    if counts is not None:
        valid &= number // unit < counts.unsqueeze(-1)
    positions = ids.long().repeat_interleave(unit, -1) * unit + number % unit
    if lengths is not None:
        valid &= positions < lengths.view(-1, 1, 1)
    positions = positions.where(valid, 0)
    rows = torch.arange(batch, device=q.device).view(-1, 1, 1)
    heads = torch.arange(groups, device=q.device).view(1, -1, 1)
    slots = table.long()[rows, positions // size].where(valid, 0)
    kv = pool[slots, heads, :, positions % size].float()  # [B, G, n*unit, sides, D]
    kv = kv.masked_fill(~valid.view(*valid.shape, 1, 1), 0.0)
    values = kv[..., -1, :]
    keys = kv[..., 0, :] if keys is None else keys.masked_fill(~valid.unsqueeze(-1), 0.0)
    if cos is not None and sin is not None:
        keys = rotated(keys, cos[positions], sin[positions])
    scores = q.float() @ keys.transpose(2, 3) * scale
    scores = (scores if bias is None else scores + bias).masked_fill(~valid.unsqueeze(2), -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(torch.float32).min).unsqueeze(-1))
    return (weights @ values).to(q.dtype), lse


@jit
def _rotated_scores(
    p_q: tl.tensor, p_k: tl.tensor, cos: tl.tensor, sin: tl.tensor, b_at: tl.tensor, m_r: tl.tensor, m_n: tl.tensor,
    DIM: tl.constexpr, TURNED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Products of queries, rows from `p_q` [R], with rotated keys, rows from `p_k` [N], at positions `b_at` [N]."""
    o_t = tl.arange(0, BLOCK_T)
    m_q, m_k = m_r[:, None] & (o_t < TURNED)[None, :], m_n[:, None] & (o_t < TURNED)[None, :]
    p_q1, p_k1 = p_q[:, None] + o_t[None, :], p_k[:, None] + o_t[None, :]
    at = b_at[:, None] * TURNED + o_t[None, :]
    b_cos, b_sin = tl.load(cos + at, mask=m_k, other=0.0), tl.load(sin + at, mask=m_k, other=0.0)  # [BLOCK_N, BLOCK_T]
    b_k1 = tl.load(p_k1, mask=m_k, other=0.0).to(tl.float32)
    b_k2 = tl.load(p_k1 + TURNED, mask=m_k, other=0.0).to(tl.float32)
    b_s = dots(tl.load(p_q1, mask=m_q, other=0.0), b_k1 * b_cos - b_k2 * b_sin)
    b_s += dots(tl.load(p_q1 + TURNED, mask=m_q, other=0.0), b_k2 * b_cos + b_k1 * b_sin)
    if 2 * TURNED < DIM:
        o_d = 2 * TURNED + tl.arange(0, BLOCK_D)
        b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m_r[:, None] & (o_d < DIM)[None, :], other=0.0)
        b_s += dots(b_q, tl.load(p_k[:, None] + o_d[None, :], mask=m_n[:, None] & (o_d < DIM)[None, :], other=0.0))
    return b_s


@jit
def _paged_kernel(
    q: tl.tensor, pool: tl.tensor, table: tl.tensor, ids: tl.tensor, counts: tl.tensor, lengths: tl.tensor,
    bias: tl.tensor, cos: tl.tensor, sin: tl.tensor, keys: tl.tensor, outs: tl.tensor, lses: tl.tensor,
    slot_stride: tl.tensor, pages: tl.tensor, count: tl.tensor, per_split: tl.tensor, scale: tl.tensor,
    GROUPS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, SIDES: tl.constexpr, SIZE: tl.constexpr,
    UNIT: tl.constexpr, TURNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:  # fmt: skip
    """All query heads of one KV head of one sequence over `per_split` of its selected tokens."""
    i_bg, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_b, i_g = i_bg // GROUPS, i_bg % GROUPS
    o_r, o_d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    m_r, m_d = o_r < HEADS, o_d < DIM
    p_q = q + (i_bg * HEADS + o_r) * DIM
    largest = tl.full([BLOCK_R], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_out = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    held = count if counts is None else tl.load(counts + i_bg).to(tl.int32)
    begin = i_s * per_split
    for i_n in range(begin, tl.minimum(begin + per_split, held * UNIT), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < held * UNIT
        b_id = tl.load(ids + i_bg * count + o_n // UNIT, mask=m_n, other=0).to(tl.int64)
        b_at = b_id * UNIT + o_n % UNIT  # position of each token
        if lengths is not None:
            m_n = m_n & (b_at < tl.load(lengths + i_b))
        b_slot = tl.load(table + i_b * pages + b_at // SIZE, mask=m_n, other=0).to(tl.int64)
        p_k = pool + b_slot * slot_stride + i_g * (SIDES * SIZE * DIM) + (b_at % SIZE) * DIM
        p_v = p_k + (SIDES - 1) * SIZE * DIM
        if keys is not None:
            p_k = keys + (i_bg * count * UNIT + o_n) * DIM
        m_kv = m_n[:, None] & m_d[None, :]
        if cos is None:
            b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m_r[:, None] & m_d[None, :], other=0.0)
            b_s = dots(b_q, tl.load(p_k[:, None] + o_d[None, :], mask=m_kv, other=0.0)) * scale
        else:
            b_s = _rotated_scores(p_q, p_k, cos, sin, b_at, m_r, m_n, DIM, TURNED, BLOCK_T, BLOCK_D) * scale
        if bias is not None:
            at = (i_bg * HEADS + o_r[:, None]) * count * UNIT + o_n[None, :]
            b_s += tl.load(bias + at, mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_v = tl.load(p_v[:, None] + o_d[None, :], mask=m_kv, other=0.0)  # [BLOCK_N, BLOCK_D]
        largest, total, b_out = accumulate(b_s, b_v, m_n, largest, total, b_out)
    row = (i_s * tl.num_programs(0) + i_bg) * HEADS
    store_part(outs, lses, row, largest, total, b_out, HEADS, DIM, BLOCK_R, BLOCK_D)


def paged_attention_triton(
    q: Tensor,
    pool: Tensor,
    table: Tensor,
    ids: Tensor,
    *,
    unit: int,
    scale: float,
    counts: Tensor | None = None,
    lengths: Tensor | None = None,
    bias: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    keys: Tensor | None = None,
    beside: int = 0,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One launch for the whole batch and one that merges. `splits` cuts each row into so many parts (None: to fill
    the device); parts beyond a row's count end at once."""
    batch, groups, heads, dim = q.shape
    count, turned = ids.shape[2], 0 if cos is None else cos.shape[1]
    block = block_keys(dim, pool.dtype if cos is None and keys is None else torch.float32)
    blocks = cdiv(count * unit, block)
    wanted = num_splits((batch + beside) * groups, blocks, q.device) if splits is None else min(splits, blocks)
    per_split = cdiv(blocks, max(wanted, 1)) * block
    parts = cdiv(count * unit, per_split) if count else 0
    outs = torch.empty(parts, batch * groups * heads, dim, dtype=torch.float32, device=q.device)
    lses = torch.empty(parts, batch * groups * heads, dtype=torch.float32, device=q.device)
    launch(
        _paged_kernel, (batch * groups, parts), q, pool, table, ids, counts, lengths, bias, cos, sin, keys, outs, lses,
        pool.stride(0), table.shape[1], count, per_split, scale,
        GROUPS=groups, HEADS=heads, DIM=dim, SIDES=pool.shape[2], SIZE=pool.shape[3], UNIT=unit,
        TURNED=turned, BLOCK_R=block_of(heads, 16), BLOCK_N=block, BLOCK_D=block_of(dim, 16),
        BLOCK_T=block_of(turned, 16), num_warps=8 if turned > 64 else 4, num_stages=2,
    )  # fmt: skip
    out, lse = merge_partials(outs, lses, q.dtype)
    return out.view(q.shape), lse.view(batch, groups, heads)


def paged_attention(
    q: Tensor,
    pool: Tensor,
    table: Tensor,
    ids: Tensor,
    *,
    unit: int,
    scale: float,
    counts: Tensor | None = None,
    lengths: Tensor | None = None,
    bias: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    keys: Tensor | None = None,
    beside: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attend with a batch, whose sums are cut as if it had `beside` further sequences: to the bit it then does not
    matter which of them are in one launch.

    Raises ValueError on shapes that do not fit the contract, or tensors that are not contiguous (the pool's slots
    may lie apart)."""
    batch, groups, heads, dim = q.shape
    sides = 1 if keys is not None and pool.shape[2] == 1 else 2
    _check("pool", pool, (pool.shape[0], groups, sides, pool.shape[3], dim), inner=True)
    _check("table", table, (batch, table.shape[1]))
    _check("ids", ids, (batch, groups, ids.shape[2]))
    _check("q", q, (batch, groups, heads, dim))
    _check("counts", counts, (batch, groups))
    _check("lengths", lengths, (batch,))
    _check("bias", bias, (batch, groups, heads, ids.shape[2] * unit))
    _check("keys", keys, (batch, groups, ids.shape[2] * unit, dim))
    if unit < 1 or pool.shape[3] % unit:
        raise ValueError(f"unit is a divisor of the page size {pool.shape[3]}, not {unit}")
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin are given together or not at all")
    if cos is not None and keys is not None:
        raise ValueError("keys that are given are rotated already: expected no cos and sin")
    if cos is not None and sin is not None:
        width = cos.shape[-1]
        if not 1 <= width <= dim // 2:
            raise ValueError(f"cos has 1 to {dim // 2} channels, half of those it turns, not {width}")
        _check("cos", cos, (cos.shape[0], width))
        _check("sin", sin, (cos.shape[0], width))
    attend = paged_attention_reference
    if uses_triton(q, pool, table, ids, counts, lengths, bias, cos, sin, keys):
        attend = partial(paged_attention_triton, beside=beside)
    return attend(
        q, pool, table, ids, unit=unit, scale=scale, counts=counts, lengths=lengths, bias=bias, cos=cos, sin=sin,
        keys=keys,
    )  # fmt: skip


def _check(name: str, found: Tensor | None, shape: tuple[int, ...], *, inner: bool = False) -> None:
    """`inner`: only the first axis may be strided."""
    if found is None:
        return
    if found.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {list(found.shape)}")
    if not (found[0] if inner and shape[0] else found).is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got strides {list(found.stride())}")
