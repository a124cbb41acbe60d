"""Attention of a run of queries over one block of keys, with the log-sum-exp to merge blocks.

Shapes  q [H, T, D]   k [G, S, D]   v [G, S, V]   out [H, T, V]   lse [H, T] fp32      (H = G*R, V <= D)
Formula out = softmax(scale * q k^T) v;  lse = log sum exp(scale * q k^T)
Masks   causal: T == S and row t sees columns 0..t
Dtypes  fp16/bf16/fp32; scores, softmax and lse in fp32
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MOST_FLASH = 256
"""The widest heads that PyTorch's operator for CUDA takes."""


def prefill_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """The formula, written to be read."""
    repeats = q.shape[0] // k.shape[0]
    keys, values = k.repeat_interleave(repeats, 0).float(), v.repeat_interleave(repeats, 0).float()
    scores = q.float() @ keys.transpose(1, 2) * scale
    if causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    lse = scores.logsumexp(-1)
    return (torch.exp(scores - lse.unsqueeze(-1)) @ values).to(q.dtype), lse


def prefill_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention by PyTorch's fused operator where that also returns the lse, by the reference elsewhere.

    Raises ValueError on shapes that do not fit the contract.
    """
    dim, width = k.shape[2], v.shape[2]
    if k.shape[:2] != v.shape[:2] or q.shape[0] % k.shape[0] or q.shape[2] != dim or width > dim:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: expected [H,T,D], [G,S,D], [G,S,V], V up to D"
        )
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal attention needs T == S, got {q.shape[1]} and {k.shape[1]}")
    if width < dim:  # the fused operators know one width
        v = F.pad(v, (0, dim - width))
    # Where no row is told from another, all heads that share keys are rows of one: its tiles are taller.
    heads = q if causal else q.reshape(k.shape[0], -1, dim)
    if q.is_cuda and q.dtype != torch.float32 and dim <= _MOST_FLASH:
        repeats = heads.shape[0] // k.shape[0]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
            heads.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), 0.0, causal, scale=scale
        )
        return out[0].reshape(q.shape)[..., :width], lse[0, :, : heads.shape[1]].reshape(q.shape[:2])
    if q.device.type == "cpu" and q.dtype != torch.float16:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            heads.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), 0.0, causal, scale=scale
        )
        return out[0].reshape(q.shape)[..., :width], lse[0].reshape(q.shape[:2])
    return prefill_attention_reference(q, k, v[..., :width], scale=scale, causal=causal)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """Attention whose scores have `mask` `[T, S]` added to them, in the dtype of q and without the lse.

    NOTE: the mask has two dimensions. One of three sends PyTorch on a CPU to plain operations
    (findings/sdpa_mask_of_three_dims.sh)."""
    q, k, v = (part.unsqueeze(0) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)[0]
