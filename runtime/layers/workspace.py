"""Buffers in the compute tier that attention works in, allocated once and counted under its cap."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ...storage import PageLayout
from ..process.turns import Turns
from .past_blocks import PastBlocks

KEY_BLOCK = 2048
"""Keys per attention block. Fixed: results must not depend on how much memory there is."""
AHEAD_TOKENS = 512
"""So many tokens cross to the device at a time before anybody asks for them."""


class Workspace:
    """The span buffer (K, V of the rows being prefilled) and the staging areas (gathered pages; rows fetched ahead). K
    and V are two sides, or one (`PageLayout.sides`).

    Args:
        span_tokens: rows of one prefill span; the buffer also holds the tail before them.
        turns: whoever holds the turn may use the buffers; a model's, where several engines share it.
        num_past: buffers for blocks of the past that come from other memory; 0: they are gathered when they are wanted.
    """

    def __init__(
        self, layout: PageLayout, span_tokens: int, device: torch.device, turns: Turns | None = None, *,
        num_past: int = 0,
    ) -> None:  # fmt: skip
        self.turns = turns or Turns("the workspace")
        self.dtype: torch.dtype = getattr(torch, layout.dtype)
        self.span_tokens, self.page_size, self._layout, self._device = span_tokens, layout.page_size, layout, device
        shape = (layout.sides, layout.num_heads, span_tokens + layout.page_size, layout.head_dim)
        self.span = torch.empty(shape, dtype=self.dtype, device=device)
        stage = layout.sides * layout.num_heads * _staged_tokens(layout.page_size) * layout.head_dim
        self._stage = torch.empty(stage, dtype=self.dtype, device=device)
        ahead = max(AHEAD_TOKENS, layout.page_size) * layout.sides * layout.num_heads * layout.head_dim
        self.ahead = torch.empty(ahead, dtype=self.dtype, device=device)
        self._wide = torch.empty(stage, dtype=torch.float32, device=device) if self._widens(device) else None
        self.past = PastBlocks(layout, KEY_BLOCK, num_past, device, self.turns) if num_past else None

    def _widens(self, device: torch.device) -> bool:
        """CPU kernels compute in fp32: a 16-bit stage is widened once, into memory that is there."""
        return device.type == "cpu" and self.dtype != torch.float32

    @cached_property
    def on_host(self) -> Workspace:
        """The workspace that attention on the CPU stages in: this one, or beside a GPU a second one without a span."""
        return self if self._device.type == "cpu" else Workspace(self._layout, 0, torch.device("cpu"), self.turns)

    @staticmethod
    def bytes_for(layout: PageLayout, span_tokens: int, num_past: int = 0) -> int:
        """Bytes that a workspace takes, its widened stage included."""
        staged = _staged_tokens(layout.page_size)
        widened = staged * layout.token_bytes * 2 if layout.item_bytes == 2 else 0
        past = num_past * (KEY_BLOCK // layout.page_size * layout.page_size)
        rows = span_tokens + layout.page_size + staged + max(AHEAD_TOKENS, layout.page_size) + past
        return rows * layout.token_bytes + widened

    def stage(self, rows: int, width: int) -> Tensor:
        """A contiguous `[rows, width]` view; the previous one is overwritten."""
        return self._stage[: rows * width].view(rows, width)

    def widened(self, staged: Tensor) -> Tensor:
        """The rows gathered into `staged`, in the dtype that kernels on this device compute in."""
        if self._wide is None:
            return staged
        return self._wide[: staged.numel()].view(staged.shape).copy_(staged)


def _staged_tokens(page_size: int) -> int:
    """A block of keys in whole pages: where these do not divide it, those in which it begins and ends as well."""
    return (KEY_BLOCK // page_size + (2 if KEY_BLOCK % page_size else 0)) * page_size
