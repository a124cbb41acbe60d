"""The KV of a sliding-window layer of one sequence: small, kept as it is, never in pages.

Shapes  G KV heads, T new rows, D head dim; queries have H heads, H a multiple of G.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.compiled.record import WIDTH
from ...kernels.decode_attention import decode_attention
from ...kernels.prefill_attention import masked_attention
from ...kernels.sinks import with_sinks
from ...storage import PageLayout
from .attend_rows import Attending, num_parts
from .base import LayerKV
from .standing import NUM_ROWS, Run, Standing
from .stored import check_window

RUNS = 2
"""There is room for so many times the tokens that are held: they are moved to the front when it is full."""
BAND_ROWS = 128
"""Rows of a prefill that attend together: to the window and to each other, so the fewer they are the less is masked."""
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
        past = min(self._count, self.window - 1)  # so that how many more are held changes no bit
        before = self._buffer[:, :, self._count - past : self._count]
        keys, values = torch.cat([before[0], k], 1), torch.cat([before[1], v], 1)
        out = self._within(q, keys, values, past, scale)
        self._add(k, v)
        return out

    def _within(self, q: Tensor, keys: Tensor, values: Tensor, past: int, scale: float) -> Tensor:
        """Rows q `[H, T, D]` against themselves and `past` tokens before, some rows at a time against what these see:
        keys and values `[G, past + T, D]`."""
        outs = []
        for first in range(0, q.shape[1], BAND_ROWS):
            rows = q[:, first : first + BAND_ROWS]
            count, before = rows.shape[1], min(past + first, self.window - 1)
            some = slice(past + first - before, past + first + count)
            visible = rows, keys[:, some], values[:, some], _band(count, before, self.window, q.dtype, q.device)
            if self._sinks is not None:
                visible = _and_sinks(*visible, self._sinks / scale)
            outs.append(masked_attention(*visible, scale=scale)[..., : q.shape[-1]])
        return torch.cat(outs, 1)

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

    def _count_in(self, rows: int = 1) -> None:
        """Some more tokens, at most `keep`, whose K and V belong into the last of the rows that count."""
        if self._count + rows > self._buffer.shape[2]:
            stay = min(self._count, self.keep)
            self._buffer[:, :, :stay] = self._buffer[:, :, self._count - stay : self._count].clone()
            self._count = stay
        self._count += rows
        self._end += rows

    def _add(self, k: Tensor, v: Tensor) -> None:
        """Hold the last of k and v `[G, T, D]` behind what is held."""
        rows = min(k.shape[1], self.keep)
        self._count_in(rows)
        self._end += k.shape[1] - rows
        here = self._buffer[:, :, self._count - rows : self._count]
        here[0], here[1] = k[:, -rows:], v[:, -rows:]

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


@lru_cache(maxsize=4)
def _band(rows: int, past: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of some rows and of so many keys before them: 0, or minus infinity outside the
    window, `[rows, past + rows]`."""
    query = torch.arange(past, past + rows, device=device).unsqueeze(1)
    key = torch.arange(past + rows, device=device).unsqueeze(0)
    unseen = (key > query) | (query - key >= window)
    return torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, -torch.inf)


def _and_sinks(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With one key more, before all others, that every row sees: its value is zero, and it is zero but for a dimension
    that no other key has, in which queries have their heads' `sinks`. Rows become _ALIGNED numbers longer."""
    dim = q.shape[-1]
    q, keys, values = F.pad(q, (0, _ALIGNED)), F.pad(keys, (0, _ALIGNED, 1, 0)), F.pad(values, (0, _ALIGNED, 1, 0))
    q[..., dim], keys[:, 0, dim] = sinks.unsqueeze(-1).to(q.dtype), 1
    return q, keys, values, F.pad(mask, (1, 0))
