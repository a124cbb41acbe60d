"""The KV of a sliding-window layer of one sequence: small, kept as it is, never in pages.

Shapes  G KV heads, T new rows, D head dim; queries have H heads, H a multiple of G.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.compiled.record import WIDTH
from ...kernels.decode_attention import decode_attention
from ...kernels.sinks import with_sinks
from ...storage import PageLayout
from .attend_rows import Attending, num_parts
from .base import LayerKV
from .standing import NUM_ROWS, Run, Standing
from .stored import check_window

RUNS = 2
"""There is room for so many times the tokens that are held: they are moved to the front when it is full."""
_ALIGNED = 8
"""Fused attention is for heads of multiples of this."""


class StandingWindow:
    """What attention over a window reads, the same rows for as long as the same attends.

    Args:
        window: in tokens.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._known: tuple[Attending, Standing] | None = None

    def of(self, at: Attending) -> Standing:
        if self._known is None or self._known[0] is not at:
            rows = np.zeros((NUM_ROWS, WIDTH), dtype=np.int64)
            at.row(rows[-1], unit=1, page=1)
            self._known = at, Standing(rows, self._window)
        return self._known[1]


class SlidingLayer(LayerKV):
    """A sliding-window layer: it holds the last `window - 1` tokens, and up to a page more so that its state at the
    last page's end can be cut out. `sinks` `[H]`: learned ones (`kernels.sinks`)."""

    is_paged: ClassVar[bool] = False

    def __init__(
        self, layer: int, window: int, layout: PageLayout, dtype: torch.dtype, device: torch.device,
        sinks: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.layer, self.window, self.layout, self._sinks = layer, window, layout, sinks
        self.keep = window - 1 + layout.page_size
        shape = (2, layout.num_heads, RUNS * self.keep, layout.head_dim)
        self._buffer = torch.empty(shape, dtype=dtype, device=device)
        self._count = 0
        self._end = 0
        self._run: Run | None = None
        self._standing = StandingWindow(window)

    @staticmethod
    def bytes_for(window: int, layout: PageLayout, dtype: torch.dtype) -> int:
        """Bytes that such a layer holds of a sequence, however short that is."""
        return RUNS * (window - 1 + layout.page_size) * 2 * layout.num_heads * layout.head_dim * dtype.itemsize

    # Prefill

    def begin(self) -> None:
        """Rows go straight to where they are kept."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        rows, held = q.shape[1], self._count
        keys = torch.cat([self._buffer[0, :, :held], k], 1)
        values = torch.cat([self._buffer[1, :, :held], v], 1)
        past = min(held, self.window - 1)  # so that how many more are held changes no bit
        out = self._within(q, keys[:, held - past :], values[:, held - past :], past, scale)
        kept = min(self.keep, held + rows)
        self._hold(torch.stack([keys[:, held + rows - kept :], values[:, held + rows - kept :]]), start + rows)
        return out

    def _within(self, q: Tensor, keys: Tensor, values: Tensor, past: int, scale: float) -> Tensor:
        """Rows q `[H, T, D]` against themselves and `past` tokens before: keys and values `[G, past + T, D]`."""
        query = torch.arange(past, past + q.shape[1], device=q.device).unsqueeze(1)
        key = torch.arange(past + q.shape[1], device=q.device).unsqueeze(0)
        visible = q, keys, values, (key <= query) & (query - key < self.window)
        if self._sinks is not None:
            visible = _and_sinks(*visible, self._sinks / scale)
        queries, keys, values, seen = (part.unsqueeze(0) for part in visible)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, scale=scale, enable_gqa=True)
        return out[0, ..., : q.shape[-1]]

    def attend_last(self, q: Tensor, start: int, scale: float) -> Tensor:
        """The exact attention `[H, T, D]` of the last rows that are held, at positions `start ..`: at most a page;
        q `[H, T, D]`."""
        rows = q.shape[1]
        assert start + rows == self._end, "not the last rows"
        assert rows <= self.layout.page_size, "their windows begin before what is held"
        past = min(self._count - rows, self.window - 1)
        here = self._buffer[:, :, self._count - rows - past : self._count].to(q.dtype)
        return self._within(q, here[0], here[1], past, scale)

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        """There are no pages to publish."""

    def compare(self, before: Tensor, after: Tensor) -> None:
        """There is no placement to tell."""

    def end_prefill(self) -> None:
        """There is nothing to learn."""

    # Decode

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        """The window is where attention reads it."""

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._count_in()
        row = self._buffer[:, :, self._count - 1]
        row[0], row[1] = k, v
        return self.attend_newest(q, scale)

    def attend_newest(self, q: Tensor, scale: float) -> Tensor:
        """The attention `[H, D]` of the newest token's q `[H, D]`."""
        here = self._seen()
        query = q.view(self.layout.num_heads, -1, self.layout.head_dim)
        out, lse = decode_attention(query, [(here[0], here[1])], scale=scale)
        if self._sinks is not None:
            out = with_sinks(out, lse, self._sinks.view(lse.shape))
        return out.view_as(q)

    def _count_in(self) -> None:
        """One more token, whose K and V belong into the last of the rows that count."""
        if self._count == self._buffer.shape[2]:
            self._buffer[:, :, : self.keep] = self._buffer[:, :, self._count - self.keep :].clone()
            self._count = self.keep
        self._count += 1
        self._end += 1

    def _seen(self) -> Tensor:
        """K and V `[2, G, n, D]` of the tokens that the last one sees, a view."""
        return self._buffer[:, :, max(0, self._count - self.window) : self._count]

    def begin_step(self, at: Attending) -> tuple[Run, int, Standing]:
        self._count_in()
        if self._run is None:
            self._run = Run(self._buffer)
        return *self.run, self._standing.of(at)

    @property
    def run(self) -> tuple[Run, int]:
        """What it holds as a run of tokens, and how many there are, after `begin_step`."""
        assert self._run is not None
        return self._run, self._count

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int:
        seen = self._seen()
        parts = num_parts(seen.shape[2], 1)
        at.row(rows[-1], unit=1, page=1, parts=parts)
        at.behind(rows[-1], seen, seen.shape[2])
        run(rows[-1:])
        return parts

    def end_page(self, at: Attending) -> None:
        """There are no pages."""

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        self._count -= self._end - num_tokens
        self._end = num_tokens

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        """There are no pages to publish."""

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        return self.extend(q, k, v, start, scale)  # a step reads the whole window, too

    # What the store and sessions keep

    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        return {f"{self.layer}": self._kept(tail_len)}

    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        self._check(f"layer {self.layer}", left.get(f"{self.layer}"), num_tokens)

    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        self._hold(left[f"{self.layer}"], num_tokens)

    def export(self) -> dict[str, Tensor]:
        return {"window": self._kept()}

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        name = f"{prefix}window"
        self._check(name, tensors.get(name), num_tokens)
        return {name}

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        self._hold(tensors["window"], num_tokens)

    def _check(self, field: str, kv: Tensor | None, num_tokens: int) -> None:
        check_window(field, kv, self.window, self.keep, num_tokens, self.layout, self._buffer.dtype)

    # Points and copies

    def snapshot(self) -> tuple[int, Tensor]:
        """Its length, and K and V `[2, G, n, D]` of the tokens it holds, a copy."""
        return self._end, self._kept()

    def rollback(self, point: tuple[int, Tensor]) -> None:
        end, kv = point
        self._hold(kv, end)

    def truncate(self, num_pages: int) -> NoReturn:
        raise AssertionError("only paged layers are cut at a page: what a window has passed is gone")

    def follow(self, other: SlidingLayer) -> None:
        self.rollback(other.snapshot())

    def close(self) -> None:
        self._count = self._end = 0

    def _kept(self, back: int = 0) -> Tensor:
        """K and V `[2, G, n, D]` of the tokens it held `back` tokens (less than a page) ago, a copy."""
        end = self._count - back
        return self._buffer[:, :, max(0, end - self.keep) : end].clone()

    def _hold(self, kv: Tensor, end: int) -> None:
        """Hold `kv` `[2, G, n, D]`, the last n of `end` tokens."""
        self._count, self._end = kv.shape[2], end
        self._buffer[:, :, : self._count] = kv


def _and_sinks(
    q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With one key more, before all others, that every row sees: its value is zero, and it is zero but for a dimension
    that no other key has, in which queries have their heads' `sinks`. Rows become _ALIGNED numbers longer."""
    dim = q.shape[-1]
    q, keys, values = F.pad(q, (0, _ALIGNED)), F.pad(keys, (0, _ALIGNED, 1, 0)), F.pad(values, (0, _ALIGNED, 1, 0))
    q[..., dim], keys[:, 0, dim] = sinks.unsqueeze(-1).to(q.dtype), 1
    return q, keys, values, F.pad(seen, (1, 0), value=True)
