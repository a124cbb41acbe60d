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

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.merge_states import merge_states
from ...kernels.prefill_attention import prefill_attention
from ...kernels.sinks import with_sinks
from ..api.errors import ConversationError
from .page_reader import PageReader
from .pages import LayerPages, fill, keys_values
from .workspace import KEY_BLOCK, Workspace


def attend_exactly(
    q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, block: Callable[[int, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Rows `start ..` against themselves and all keys before them, which come as `block(begin, end)`: `[H, T, D]` and
    lse `[H, T]`; q `[H, T, D]`, k and v `[G, T, D]`."""
    q = q.contiguous()  # once for all blocks
    out, lse = prefill_attention(q, k, v, scale=scale, causal=True)
    outs, lses = [out], [lse]
    for begin in range(0, start, KEY_BLOCK):
        keys, values = block(begin, min(begin + KEY_BLOCK, start))
        out, lse = prefill_attention(q, keys.to(q.dtype), values.to(q.dtype), scale=scale, causal=False)
        outs.append(out)
        lses.append(lse)
    return merge_states(outs, lses)


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
        block = self.block
        if expanded is not None:
            k, v = expanded(k)

            def block(begin: int, end: int) -> tuple[Tensor, Tensor]:
                return expanded(self.block(begin, end)[0].to(q.dtype))

        out, lse = attend_exactly(q, k, v, start, scale, block)
        return (out if self._sinks is None else with_sinks(out, lse, self._sinks.unsqueeze(-1))), lse

    def new(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """K and V `[G, end - begin, D]` of rows of the span, the tail's first. Good as long as the span is."""
        return keys_values(self._workspace.span[:, :, begin:end], self._pages.layout)

    def block(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """K and V `[G, end - begin, D]` by position, from the store, the span buffer, or both.

        Good until the next read of this or another layer."""
        sealed, span = self._pages.sealed, self._workspace.span
        if begin >= sealed:
            return self.new(begin - sealed, end - sealed)
        keys, values = self._reader.block(begin, min(end, sealed))
        if end <= sealed:
            return keys, values
        rest = keys_values(span[:, :, : end - sealed].to(keys.dtype), self._pages.layout)
        return torch.cat([keys, rest[0]], 1), torch.cat([values, rest[1]], 1)
