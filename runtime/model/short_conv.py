"""The mixer of LFM2's convolution layers: each channel is a weighted sum of its last K numbers, gated before and after.

    B, C, x = in_proj(hidden)       u = B x       out_proj(C conv(u))

Shapes  B sequences, T tokens, C channels (the hidden size), K taps
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import Linear

State = dict[str, Tensor]


class Taps(nn.Module):
    """The weights `[channels, 1, K]` of a causal convolution of each channel by itself; the last one is the present
    token's."""

    def __init__(self, channels: int, taps: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    @property
    def columns(self) -> tuple[int, int]:
        """The shape `[K - 1, channels]` of the numbers before, which are this convolution's state."""
        return self.weight.shape[2] - 1, self.weight.shape[0]

    def forward(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution of `rows` `[T, channels]` behind `columns`, and the columns then, fp32."""
        all_rows = torch.cat([columns.to(rows.dtype), rows])
        kept = all_rows[rows.shape[0] :].float().clone()
        if rows.shape[0] == 1:
            out = (all_rows * self.weight[:, 0].T).sum(0, keepdim=True)
            return out if self.bias is None else out + self.bias, kept
        out = F.conv1d(all_rows.T.unsqueeze(0), self.weight, self.bias, groups=rows.shape[1])
        return out[0].T, kept


class ShortConv(nn.Module):
    def __init__(self, config: Any, at: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, bool(config.conv_bias)
        self.layer_idx = at
        self.in_proj = Linear(hidden, 3 * hidden, bias=bias)
        self.conv = Taps(hidden, config.conv_L_cache, bias=bias)
        self.out_proj = Linear(hidden, hidden, bias=bias)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the state."""
        return {"columns": self.conv.columns}

    @property
    def in_projections(self) -> list[Linear]:
        """Those that make what is mixed."""
        return [self.in_proj]

    def forward(self, hidden: Tensor, mix: Any) -> Tensor:
        """Mix `[B, T, C]`."""
        before, after, x = self.in_proj(hidden).chunk(3, -1)
        out: Tensor = self.out_proj(after * mix(self.layer_idx, (before * x,), self.advance))
        return out

    def advance(self, inputs: tuple[Tensor, ...], state: State) -> tuple[Tensor, State]:
        out, columns = self.conv(inputs[0], state["columns"])
        return out, {"columns": columns}
