"""Buffers in the compute tier that attention works in, allocated once and counted under its cap."""

from __future__ import annotations

import torch
from torch import Tensor

from ..storage import PageLayout

KEY_BLOCK = 2048
"""Keys per attention block. Fixed: results must not depend on how much memory there is."""


class Workspace:
    """The span buffer (K, V of the rows being prefilled) and the staging area (gathered pages).

    Args:
        span_tokens: rows of one prefill span; the buffer also holds the tail before them.
    """

    def __init__(self, layout: PageLayout, span_tokens: int, device: torch.device) -> None:
        self.dtype: torch.dtype = getattr(torch, layout.dtype)
        self.span_tokens = span_tokens
        shape = (2, layout.num_heads, span_tokens + layout.page_size, layout.head_dim)
        self.span = torch.empty(shape, dtype=self.dtype, device=device)
        stage = 2 * layout.num_heads * KEY_BLOCK * layout.head_dim
        self._stage = torch.empty(stage, dtype=self.dtype, device=device)

    @staticmethod
    def bytes_for(layout: PageLayout, span_tokens: int) -> int:
        return (span_tokens + layout.page_size + KEY_BLOCK) * layout.token_bytes

    def stage(self, rows: int, width: int) -> Tensor:
        """A contiguous `[rows, width]` view; the previous one is overwritten."""
        return self._stage[: rows * width].view(rows, width)
