"""Decode attention of one query over keys that lie in several runs (gathered pages, the tail).

Shapes  q [G, R, D]   runs: list of (k [G, n_i, D], v [G, n_i, D])   out [G, R, D]   lse [G, R] fp32
Formula one softmax over all runs: out = softmax(scale * q [k_1 .. k_m]^T) [v_1 .. v_m]
Dtypes  fp16/bf16/fp32; scores, softmax and sum in fp32. Runs may be strided; none may be empty in
        total.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decode_attention_reference(
    q: Tensor, runs: Sequence[tuple[Tensor, Tensor]], *, scale: float
) -> tuple[Tensor, Tensor]:
    """The formula, on concatenated runs."""
    keys = torch.cat([k for k, _ in runs], 1).float()
    values = torch.cat([v for _, v in runs], 1).float()
    scores = q.float() @ keys.transpose(1, 2) * scale
    lse = scores.logsumexp(-1)
    return (torch.exp(scores - lse.unsqueeze(-1)) @ values).to(q.dtype), lse


def decode_attention(q: Tensor, runs: Sequence[tuple[Tensor, Tensor]], *, scale: float) -> tuple[Tensor, Tensor]:
    """Without concatenating: scores of every run go into one buffer, values are summed run by run.

    Raises ValueError if the runs hold no key.
    """
    total = sum(k.shape[1] for k, _ in runs)
    if total == 0:
        raise ValueError("decode attention over no keys: at least the new token must be among them")
    scaled = q.float() * scale
    scores = torch.empty(*q.shape[:2], total, dtype=torch.float32, device=q.device)
    start = 0
    for k, _ in runs:
        stop = start + k.shape[1]
        torch.matmul(scaled, k.float().transpose(1, 2), out=scores[:, :, start:stop])
        start = stop
    lse = torch.logsumexp(scores, -1)
    weights = torch.softmax(scores, -1)
    out, start = None, 0
    for _, v in runs:
        stop = start + v.shape[1]
        part, values = weights[:, :, start:stop], v.float()
        out = part @ values if out is None else torch.baddbmm(out, part, values)
        start = stop
    assert out is not None
    return out.to(q.dtype), lse
