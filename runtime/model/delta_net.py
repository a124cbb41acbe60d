"""The mixer of Qwen's recurrent layers: a gated delta rule (`kernels.delta_rule`) behind a short convolution.

    q, k, v = silu(conv(in_proj(hidden)))      one key head serves N / G value heads
    q, k    = of length one                    beta = sigmoid(b)      g = -exp(A_log) softplus(a + dt_bias)
    out     = out_proj(norm(delta_rule) silu(z))

Shapes  B sequences, T tokens, C hidden size, G key heads of size K, N value heads of size V
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.delta_rule import delta_rule
from .products import Linear
from .short_conv import State, Taps

_LENGTH_EPS = 1e-6
"""Added to the square of a vector's length before it is divided by it."""


class DeltaNet(nn.Module):
    """
    Args:
        by_key_head: one product makes q, k, v and z, another b and a, whose rows stand by key head.
    """

    def __init__(self, config: Any, at: int, *, by_key_head: bool) -> None:
        super().__init__()
        self.layer_idx, hidden = at, config.hidden_size
        self.key_heads, self.key_dim = config.linear_num_key_heads, config.linear_key_head_dim
        self.heads, self.dim = config.linear_num_value_heads, config.linear_value_head_dim
        keys, values = self.key_heads * self.key_dim, self.heads * self.dim
        self.are_tiled = bool(getattr(config, "linear_value_heads_are_tiled", False))
        self.parts, self.scale = [keys, keys, values], self.key_dim**-0.5
        self.by_key_head = by_key_head
        if by_key_head:
            self.in_proj_qkvz = Linear(hidden, sum(self.parts) + values, bias=False)
            self.in_proj_ba = Linear(hidden, 2 * self.heads, bias=False)
        else:
            self.in_proj_qkv = Linear(hidden, sum(self.parts), bias=False)
            self.in_proj_z = Linear(hidden, values, bias=False)
            self.in_proj_b, self.in_proj_a = (Linear(hidden, self.heads, bias=False) for _ in range(2))
        self.conv1d = Taps(sum(self.parts), config.linear_conv_kernel_dim, bias=False)
        self.A_log, self.dt_bias = (nn.Parameter(torch.empty(self.heads)) for _ in range(2))
        self.norm = GatedNorm(self.dim, config.rms_norm_eps)
        self.out_proj = Linear(values, hidden, bias=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the state."""
        return {"columns": self.conv1d.columns, "matrix": (self.heads, self.key_dim, self.dim)}

    @property
    def in_projections(self) -> list[Linear]:
        """Those that make what is mixed."""
        if self.by_key_head:
            return [self.in_proj_qkvz, self.in_proj_ba]
        return [self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a]

    @property
    def places(self) -> np.ndarray:
        """int64 `[N, 10]`: where among what `in_projections` make the q, k, v, z, b and a of each value head begin; of
        which channels its q, k and v are the first ones; 1 if it is the first that its key head serves."""
        each, (keys, _, values) = self.heads // self.key_heads, self.parts
        head = np.arange(self.heads)
        by, within = (head % self.key_heads, head // self.key_heads) if self.are_tiled else divmod(head, each)
        channels = by * self.key_dim, keys + by * self.key_dim, 2 * keys + head * self.dim
        if self.by_key_head:
            rows, pairs = 2 * self.key_dim + 2 * each * self.dim, 2 * keys + 2 * values + 2 * each * by + within
            q = by * rows
            v = q + 2 * self.key_dim + within * self.dim
            given = q, q + self.key_dim, v, v + each * self.dim, pairs, pairs + each
        else:
            z = 2 * keys + values
            b = z + values + head
            given = *channels, z + head * self.dim, b, b + self.heads
        return np.ascontiguousarray(np.stack([*given, *channels, within == 0], 1, dtype=np.int64))

    def forward(self, hidden: Tensor, mix: Any) -> Tensor:
        """Mix `[B, T, C]`."""
        mixed, z, b, a = self._projected(hidden)
        g = -self.A_log.float().exp() * F.softplus(a.float() + self.dt_bias)
        read = mix(self.layer_idx, (mixed, g, b.sigmoid()), self.advance)
        out: Tensor = self.out_proj(self.norm(read, z.reshape(read.shape)).flatten(2))
        return out

    def _projected(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v side by side, z, b and a, each `[B, T, ..]`."""
        if not self.by_key_head:
            return self.in_proj_qkv(hidden), self.in_proj_z(hidden), self.in_proj_b(hidden), self.in_proj_a(hidden)
        each = [part // self.key_heads for part in (*self.parts, self.parts[2])]
        *qkv, z = torch.split(self.in_proj_qkvz(hidden).unflatten(-1, (self.key_heads, -1)), each, -1)
        b, a = self.in_proj_ba(hidden).unflatten(-1, (self.key_heads, -1)).chunk(2, -1)
        return torch.cat([part.flatten(2) for part in qkv], -1), z, b.flatten(2), a.flatten(2)

    def advance(self, inputs: tuple[Tensor, ...], state: State) -> tuple[Tensor, State]:
        mixed, g, beta = inputs
        convolved, columns = self.conv1d(mixed, state["columns"])
        q, k, v = torch.split(F.silu(convolved).float(), self.parts, -1)
        q, k = (of_length_one(part.reshape(-1, self.key_heads, self.key_dim)) for part in (q, k))
        each = self.heads // self.key_heads
        q, k = (for_each(part, each, are_tiled=self.are_tiled) for part in (q * self.scale, k))
        v = v.reshape(-1, self.heads, self.dim)
        out, matrix = delta_rule(q, k, v, g, beta.float(), state["matrix"])
        return out.to(mixed.dtype), {"columns": columns, "matrix": matrix}


def of_length_one(rows: Tensor) -> Tensor:
    """The vectors `[.., K]`, each divided by its length."""
    return rows * torch.rsqrt((rows * rows).sum(-1, keepdim=True) + _LENGTH_EPS)


def for_each(heads: Tensor, count: int, *, are_tiled: bool) -> Tensor:
    """Key heads `[T, G, K]`, each for so many value heads: `[T, N, K]`. These are neighbours, or `are_tiled`: every
    G-th."""
    return heads.repeat(1, count, 1) if are_tiled else heads.repeat_interleave(count, 1)


class GatedNorm(nn.Module):
    """A root mean square norm of each head, times silu of a gate."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * wide.to(x.dtype) * F.silu(gate.float())).to(x.dtype)
