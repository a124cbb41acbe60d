"""Decode attention of one query over keys that lie in several runs (gathered pages, the tail).

Shapes  q [G, R, D]   runs: list of (k [G, n_i, D], v [G, n_i, V])   out [G, R, V]   lse [G, R] fp32
Formula one softmax over all runs: out = softmax(scale * q [k_1 .. k_m]^T) [v_1 .. v_m]
Dtypes  fp16/bf16/fp32; scores, softmax and sum in fp32. Runs may be strided; none may be empty in
        total.
Limits  Triton: D = V up to 256, two stages of which fit small cards; PyTorch elsewhere
On CUDA the query heads of a KV head are the rows of one matrix product, so each key is read once; runs are cut into as
many parts as fill the device, and the parts merged. Cuts follow from shapes and the device, never from memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, num_splits, tl, uses_triton
from .merge_states import merge_partials

Runs = Sequence[tuple[Tensor, Tensor]]
_MOST_DIM = 256


def decode_attention_reference(q: Tensor, runs: Runs, *, scale: float) -> tuple[Tensor, Tensor]:
    """The formula, on concatenated runs."""
    keys = torch.cat([k for k, _ in runs], 1).float()
    values = torch.cat([v for _, v in runs], 1).float()
    scores = q.float() @ keys.transpose(1, 2) * scale
    lse = scores.logsumexp(-1)
    return (torch.exp(scores - lse.unsqueeze(-1)) @ values).to(q.dtype), lse


@jit
def dots(b_q: tl.tensor, b_k: tl.tensor) -> tl.tensor:
    """Products of rows [R, D] and [N, D] in fp32 [R, N]. Half types are exact in TF32; a second and third product make
    up for what TF32 cuts off the other factor."""
    if b_q.dtype == b_k.dtype:
        return tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    return tl.dot(b_q.to(tl.float32), tl.trans(b_k.to(tl.float32)), input_precision="tf32x3")


@jit
def accumulate(
    b_s: tl.tensor, b_v: tl.tensor, m_n: tl.tensor, largest: tl.tensor, total: tl.tensor, b_out: tl.tensor
) -> tl.tensor:
    """Add one block of scores [R, N] and values [N, D] to a running softmax."""
    b_s = tl.where(m_n[None, :], b_s, -float("inf"))
    new = tl.maximum(largest, tl.max(b_s, 1))
    base = tl.where(new > -float("inf"), new, 0.0)
    b_p, kept = tl.exp(b_s - base[:, None]), tl.exp(largest - base)
    total = total * kept + tl.sum(b_p, 1)
    b_out = b_out * kept[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
    return new, total, b_out


@jit
def store_part(
    outs: tl.tensor, lses: tl.tensor, first_row: tl.tensor, largest: tl.tensor, total: tl.tensor, b_out: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Write a running softmax as partial out [R, D] and lse [R]; 0 and -inf if it saw nothing."""
    o_r, o_d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    safe = tl.where(total > 0, total, 1.0)
    rows = first_row + o_r
    m_out = (o_r < HEADS)[:, None] & (o_d < DIM)[None, :]
    tl.store(outs + rows[:, None] * DIM + o_d[None, :], b_out / safe[:, None], mask=m_out)
    tl.store(lses + rows, largest + tl.log(safe), mask=o_r < HEADS)


@jit
def _run_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, outs: tl.tensor, lses: tl.tensor,
    q_g: tl.tensor, q_r: tl.tensor, q_d: tl.tensor, k_g: tl.tensor, k_n: tl.tensor, k_d: tl.tensor, v_g: tl.tensor,
    v_n: tl.tensor, v_d: tl.tensor,
    count: tl.tensor, per_split: tl.tensor, first_part: tl.tensor, scale: tl.tensor,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Attends with all query heads of one KV head to `per_split` keys of a run."""
    i_g, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_r, o_d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    m_q = (o_r < HEADS)[:, None] & (o_d < DIM)[None, :]
    b_q = tl.load(q + i_g * q_g + o_r[:, None] * q_r + o_d[None, :] * q_d, mask=m_q, other=0.0)
    largest = tl.full([BLOCK_R], -float("inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_out = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    begin = i_s * per_split
    for i_n in range(begin, tl.minimum(begin + per_split, count), BLOCK_N):
        o_n = (i_n + tl.arange(0, BLOCK_N)).to(tl.int64)
        m_n = o_n < count
        m_kv = m_n[:, None] & (o_d < DIM)[None, :]
        b_k = tl.load(k + i_g * k_g + o_n[:, None] * k_n + o_d[None, :] * k_d, mask=m_kv, other=0.0)
        b_v = tl.load(v + i_g * v_g + o_n[:, None] * v_n + o_d[None, :] * v_d, mask=m_kv, other=0.0)
        largest, total, b_out = accumulate(dots(b_q, b_k) * scale, b_v, m_n, largest, total, b_out)
    row = ((first_part + i_s) * tl.num_programs(0) + i_g) * HEADS
    store_part(outs, lses, row, largest, total, b_out, HEADS, DIM, BLOCK_R, BLOCK_D)


def block_keys(dim: int, dtype: torch.dtype) -> int:
    """Keys per block: two stages of keys and values fit the 99 KiB of shared memory that small cards have."""
    return max(16, min(64, 16384 // (block_of(dim) * dtype.itemsize)))


def decode_attention_triton(q: Tensor, runs: Runs, *, scale: float, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """Attention by one launch per run and one that merges. `splits` cuts each run into that many parts (None: as many
    as fill the device)."""
    groups, heads, dim = q.shape
    held = [(k, v) for k, v in runs if k.shape[1]]
    cuts = []
    for k, _ in held:
        block = block_keys(dim, k.dtype)
        blocks = cdiv(k.shape[1], block)
        wanted = num_splits(groups, blocks, q.device) if splits is None else min(splits, blocks)
        per_split = cdiv(blocks, wanted) * block
        cuts.append((block, per_split, cdiv(k.shape[1], per_split)))
    parts = sum(count for *_, count in cuts)
    outs = torch.empty(parts, groups * heads, dim, dtype=torch.float32, device=q.device)
    lses = torch.empty(parts, groups * heads, dtype=torch.float32, device=q.device)
    first = 0
    for (k, v), (block, per_split, count) in zip(held, cuts, strict=True):
        launch(
            _run_kernel, (groups, count), q, k, v, outs, lses, *q.stride(), *k.stride(), *v.stride(),
            k.shape[1], per_split, first, scale,
            HEADS=heads, DIM=dim, BLOCK_R=block_of(heads, 16), BLOCK_N=block, BLOCK_D=block_of(dim, 16),
            num_warps=4, num_stages=2,
        )  # fmt: skip
        first += count
    out, lse = merge_partials(outs, lses, q.dtype)
    return out.view(q.shape), lse.view(groups, heads)


def decode_attention(q: Tensor, runs: Runs, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention over all runs without concatenating them. Raises ValueError if the runs hold no key."""
    if not sum(k.shape[1] for k, _ in runs):
        raise ValueError("decode attention over no keys: at least the new token must be among them")
    (dim, width) = (part.shape[-1] for part in runs[0])
    if dim == width <= _MOST_DIM and uses_triton(q, *(t for run in runs for t in run)):
        return decode_attention_triton(q, runs, scale=scale)
    return _decode_attention_torch(q, runs, scale)


def _decode_attention_torch(q: Tensor, runs: Runs, scale: float) -> tuple[Tensor, Tensor]:
    """Attention by PyTorch: scores of all runs side by side, values summed run by run. The largest weight is 1 /
    sum(exp(score - largest)), which gives the log-sum-exp without a second pass of exponentials."""
    scaled = q.float() * scale
    parts = [torch.bmm(scaled, k.float().transpose(1, 2)) for k, _ in runs]
    scores = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    weights = torch.softmax(scores, -1)
    lse = scores.amax(-1).sub_(weights.amax(-1).log_())
    if len(runs) == 1:
        return torch.bmm(weights, runs[0][1].float()).to(q.dtype), lse
    out = scaled.new_zeros(*scaled.shape[:2], runs[0][1].shape[-1])
    for (_, v), part in zip(runs, torch.split(weights, [k.shape[1] for k, _ in runs], -1), strict=True):
        out = torch.baddbmm(out, part, v.float())
    return out.to(q.dtype), lse
