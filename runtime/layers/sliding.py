"""The KV of a sliding-window layer of one sequence: small, kept as it is, never tiered.

Answers `extend`, `step`, `snapshot`, ... as `tiered.TieredLayer` does.

Shapes  G KV heads, T new rows, D head dim; queries have H heads, H a multiple of G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...storage import PageLayout


class SlidingLayer:
    """A sliding-window layer: the last `window - 1` tokens, plus up to a page so that the state at
    the last page boundary can be cut out of it. Never tiered."""

    def __init__(self, layer: int, window: int, layout: PageLayout, dtype: torch.dtype, device: torch.device) -> None:
        self.layer, self.window, self.layout = layer, window, layout
        self.keep = window - 1 + layout.page_size
        shape = (2, layout.num_heads, 2 * self.keep, layout.head_dim)
        self._buffer = torch.empty(shape, dtype=dtype, device=device)
        self._count = 0
        self._end = 0

    def begin(self) -> None:
        pass

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        """As `TieredLayer.extend`, with keys more than `window - 1` positions back unseen."""
        rows, held = q.shape[1], self._count
        keys = torch.cat([self._buffer[0, :, :held], k], 1)
        values = torch.cat([self._buffer[1, :, :held], v], 1)
        past = min(held, self.window - 1)  # so that how many more are held changes no bit
        query = torch.arange(past, past + rows, device=q.device).unsqueeze(1)
        key = torch.arange(past + rows, device=q.device).unsqueeze(0)
        seen = (key <= query) & (query - key < self.window)
        visible = (keys[:, held - past :].unsqueeze(0), values[:, held - past :].unsqueeze(0))
        out = F.scaled_dot_product_attention(q.unsqueeze(0), *visible, attn_mask=seen, scale=scale, enable_gqa=True)
        kept = min(self.keep, held + rows)
        self.restore(torch.stack([keys[:, held + rows - kept :], values[:, held + rows - kept :]]), start + rows)
        return out[0]

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self._count == self._buffer.shape[2]:
            self._buffer[:, :, : self.keep] = self._buffer[:, :, self._count - self.keep :].clone()
            self._count = self.keep
        self._buffer[0, :, self._count] = k
        self._buffer[1, :, self._count] = v
        self._count += 1
        self._end += 1
        here = self._buffer[:, :, max(0, self._count - self.window) : self._count]
        query = q.view(self.layout.num_heads, -1, self.layout.head_dim)
        return decode_attention(query, [(here[0], here[1])], scale=scale)[0].view_as(q)

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        self._count -= self._end - num_tokens
        self._end = num_tokens

    def _kept(self, back: int = 0) -> Tensor:
        end = self._count - back
        return self._buffer[:, :, max(0, end - self.keep) : end].clone()

    def snapshot(self) -> tuple[int, Tensor]:
        """Its length, and K and V `[2, G, n, D]` of the tokens it keeps, a copy."""
        return self._end, self._kept()

    def at_boundary(self, tail_len: int) -> Tensor:
        """K and V as they were `tail_len` tokens (less than a page) ago, for prefix reuse."""
        return self._kept(tail_len)

    def rollback(self, snapshot: tuple[int, Tensor]) -> None:
        self.restore(snapshot[1], snapshot[0])

    def restore(self, kv: Tensor, end: int) -> None:
        """Hold `kv` `[2, G, n, D]`, the last n of `end` tokens."""
        self._count, self._end = kv.shape[2], end
        self._buffer[:, :, : self._count] = kv

    def follow(self, other: SlidingLayer) -> None:
        """Take on `other`'s past, a copy."""
        self.rollback(other.snapshot())

    def export(self) -> dict[str, Tensor]:
        return {"window": self._kept()}

    def close(self) -> None:
        self._count = self._end = 0
