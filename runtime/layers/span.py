"""The rows of a prefill span of one layer: where they wait until all are there, and what they attend to.

    position  0 ............ sealed ............ | tail | new rows of the span
              pages in the store, any tier         both in the span buffer of the workspace

What a result is computed from depends only on positions, never on where pages lie: row chunks and key blocks sit on a
fixed grid, so that spilling changes no bit.

Pages are published only by whoever has held the model's turn without a break since the rows began to arrive, and only
when all of them have: the buffer is shared, and what another caller wrote there would be stored for good under these
tokens' name.

Shapes  G KV heads, S sides (`pages`), H query heads, T rows, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ...kernels.merge_states import merge_states
from ...kernels.prefill_attention import prefill_attention
from ...kernels.sinks import with_sinks
from ..api.errors import ConversationError
from .page_reader import PageReader
from .pages import LayerPages, fill, keys_values
from .workspace import KEY_BLOCK, Workspace

_AT_ONCE = 8
"""Partial results that a device keeps of each level: of 2,048 rows of 32 heads in 16 bits 16 MB each."""


def attend_exactly(
    q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Rows against themselves and all keys before them, which come block by block: `[H, T, D]` and lse `[H, T]`; q
    `[H, T, D]`, k and v `[G, T, D]`. A block is read before the next one is asked for."""
    q = q.contiguous()  # once for all blocks
    parts = _Parts(_AT_ONCE if q.is_cuda else None)
    parts.add(*prefill_attention(q, k, v, scale=scale, causal=True))
    for keys, values in blocks:
        parts.add(*prefill_attention(q, keys.to(q.dtype), values.to(q.dtype), scale=scale, causal=False))
    return parts.merged()


class _Parts:
    """Partial results, of which as many as there are keys in a long past would take the memory of a device: so many at
    once are merged into one, and so many of those again. `most` None: all of them at the end, in fp32.

    What is merged with what follows from how many there are, so no bit depends on memory."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._levels: list[list[tuple[Tensor, Tensor]]] = [[]]

    def add(self, out: Tensor, lse: Tensor, level: int = 0) -> None:
        if level == len(self._levels):
            self._levels.append([])
        held = self._levels[level]
        held.append((out, lse))
        if len(held) == self._most:
            self._levels[level] = []
            self.add(*_merged(held), level + 1)

    def merged(self) -> tuple[Tensor, Tensor]:
        return _merged([part for level in reversed(self._levels) for part in level])


def _merged(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return merge_states([out for out, _ in parts], [lse for _, lse in parts])


class Span:
    """One layer's use of the workspace's span buffer. `sinks` `[H]`: see `kernels.sinks`."""

    def __init__(
        self, pages: LayerPages, reader: PageReader, workspace: Workspace, sinks: Tensor | None = None
    ) -> None:  # fmt: skip
        self._pages, self._reader, self._workspace, self._sinks = pages, reader, workspace, sinks
        self._turn = self._arrived = 0

    def begin(self) -> None:
        """Start a span, which ends in the same turn: the tail's tokens go first."""
        self._workspace.turns.require()
        self._turn, self._arrived = self._workspace.turns.number, 0
        if self._pages.tail_len:
            fill(self.rows(0, self._pages.tail_len), *self._pages.tail)

    def rows(self, first: int, count: int) -> Tensor:
        """Where K and V of the rows `first .. first + count` belong, `[S, G, count, D]`: those that come next.
        Raises ConversationError if another call has come between, or rows are left out."""
        self._workspace.turns.require()
        if self._turn != self._workspace.turns.number or first != self._arrived:
            raise ConversationError("another call came between the parts of a prefill; nothing of it is kept")
        self._arrived += count
        return self._workspace.span[:, :, first : first + count]

    def whole(self, length: int) -> Tensor:
        """K and V `[S, G, length, D]` of all rows, the tail's first. Raises ConversationError if there are fewer, or
        another call has come between."""
        self.rows(length, 0)
        return self._workspace.span[:, :, :length]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float,
        expanded: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Rows `start ..` against all keys before them, block by block, and against themselves: `[H, T, D]`, and lse
        fp32 `[H, T]` of the keys alone; q `[H, T, D]`, k and v `[G, T, D]`. Where keys are latents, q may be of what
        `expanded` makes of them."""
        blocks = self.blocks(start)
        if expanded is not None:
            k, v = expanded(k)
            blocks = (expanded(keys.to(q.dtype)) for keys, _ in blocks)
        out, lse = attend_exactly(q, k, v, scale, blocks)
        return (out if self._sinks is None else with_sinks(out, lse, self._sinks.unsqueeze(-1))), lse

    def new(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """K and V `[G, end - begin, D]` of rows of the span, the tail's first. Good as long as the span is."""
        return keys_values(self._workspace.span[:, :, begin:end], self._pages.layout)

    def blocks(self, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """K and V `[G, KEY_BLOCK, D]` of the positions before `end`, from the first on; at the end fewer. From the
        store, the span buffer, or both. Each is good until the next is asked for, or another layer reads."""
        sealed = min(end, self._pages.sealed)
        stored = self._reader.blocks(sealed, KEY_BLOCK)
        for begin in range(0, end, KEY_BLOCK):
            stop = min(begin + KEY_BLOCK, end)
            if begin >= sealed:
                yield self.new(begin - sealed, stop - sealed)
                continue
            keys, values = next(stored)
            if not keys.shape[1] and stop <= sealed:
                continue  # a page that is longer than a block comes with the one that it ends in
            if stop > sealed:
                new_keys, new_values = self.new(0, stop - sealed)
                keys = torch.cat([keys, new_keys.to(keys.dtype)], 1)
                values = torch.cat([values, new_values.to(values.dtype)], 1)
            yield keys, values
