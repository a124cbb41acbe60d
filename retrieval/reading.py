"""The reading of a selection: who fetches its tokens, and exact attention over them.

Shapes  q [G, R, D] un-scaled   ids [G, n]   k, v [G, n*unit, D]   out [G, R, D]   lse [G, R] fp32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.decode_attention import decode_attention
from ..kernels.merge_states import merge_states

Run = tuple[Tensor, Tensor]
"""Keys and values of some tokens, each `[G, n, D]`."""


class Reader(Protocol):
    """Fetches stored KV of one layer from whatever tier it lies in.

    `ids` `[G, n]` int64 name units of `unit` tokens, which divides the page size; at most `max_tokens`
    tokens a call. The result of a call is good until the next call.
    """

    @property
    def max_tokens(self) -> int: ...

    def keys_values(self, ids: Tensor, unit: int) -> Run:
        """Fetch rotated keys and values, each `[G, n*unit, D]`."""
        ...

    def values(self, ids: Tensor, unit: int) -> Tensor:
        """Fetch values alone, `[G, n*unit, D]`: no key is moved between tiers."""
        ...


def read_exactly(q: Tensor, ids: Tensor, unit: int, reader: Reader, tail: Run, scale: float) -> tuple[Tensor, Tensor]:
    """Compute one softmax over the units `ids` and the unsealed tail. Returns (out, lse).

    The work is cut every `reader.max_tokens` tokens. That is fixed, so results do not depend on where pages lie.
    """
    count, block = ids.shape[1], max(1, reader.max_tokens // unit)
    outs, lses = [], []
    for begin in range(0, max(count, 1), block):
        some = ids[:, begin : begin + block]
        runs = [reader.keys_values(some, unit)] if some.shape[1] else []
        runs += [tail] if begin + block >= count else []
        out, lse = decode_attention(q, runs, scale=scale)
        outs.append(out)
        lses.append(lse)
    return merge_states(outs, lses)


def read_weighing(
    q: Tensor, ids: Tensor, unit: int, reader: Reader, tail: Run, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `read_exactly`, to the bit. Returns (out, lse) and the attention weights of the units' tokens, fp32
    `[G, R, n * unit]`."""
    scores: list[Tensor] = []
    out, lse = read_exactly(q, ids, unit, _Scoring(reader, q.float() * scale, scores), tail, scale)
    return out, lse, (torch.cat(scores, -1) - lse.unsqueeze(-1)).exp_()


@dataclass(frozen=True, slots=True)
class _Scoring:
    """A reader that also scores the keys it fetches, for they are good until the next call only."""

    reader: Reader
    q: Tensor
    scores: list[Tensor]

    @property
    def max_tokens(self) -> int:
        return self.reader.max_tokens

    def keys_values(self, ids: Tensor, unit: int) -> Run:
        run = self.reader.keys_values(ids, unit)
        self.scores.append(self.q @ run[0].float().transpose(1, 2))
        return run

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self.reader.values(ids, unit)
