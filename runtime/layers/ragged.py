"""A step's attention to tokens of which heads have different numbers, and to one that stands for many.

Shapes  G KV heads, R query heads each, n tokens at most, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.merge_states import merge_states
from ...retrieval.reading import Run, read_exactly
from .page_reader import PageReader


def read_ragged(query: Tensor, ids: Tensor, reader: PageReader, tail: Run, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with `[G, R, D]` to sealed tokens `ids` `[G, n]`, with -1 in front where a head has fewer, and the tail.
    Returns (out, lse)."""
    padding = (ids < 0).sum(1).tolist()
    if not any(padding):
        return read_exactly(query, ids, 1, reader, tail, scale)
    outs, lses = [], []
    for begin in range(0, ids.shape[1], reader.max_tokens):
        some = ids[:, begin : begin + reader.max_tokens]
        keys, values = reader.keys_values(some.clamp(min=0), 1)
        parts = [
            decode_attention(query[g : g + 1], [(keys[g : g + 1, pad:], values[g : g + 1, pad:])], scale=scale)
            if (pad := max(0, padding[g] - begin)) < some.shape[1] else _nothing(query[g : g + 1], values)
            for g in range(len(query))
        ]  # fmt: skip
        outs.append(torch.cat([out for out, _ in parts]))
        lses.append(torch.cat([lse for _, lse in parts]))
    if tail[0].shape[1]:
        out, lse = decode_attention(query, [tail], scale=scale)
        outs, lses = [*outs, out], [*lses, lse]
    return merge_states(outs, lses)


def with_rest(
    query: Tensor, out: Tensor, lse: Tensor, rest: tuple[Tensor, Tensor, Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """The attention `out` and `lse` of `query` `[G, R, D]`, and to one more token of each head, which counts as many
    times as `retrieval.placement.Placement.rest` says; 0 is none."""
    key, value, count = rest
    logits = (query.float() @ key.unsqueeze(2)).squeeze(2) * scale + count.log().unsqueeze(1)
    return merge_states([out, value.unsqueeze(1).expand_as(out).to(out.dtype).contiguous()], [lse, logits])


def _nothing(query: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Out and lse of attention to no token."""
    out = query.new_zeros((*query.shape[:-1], values.shape[-1]))
    return out, query.new_full(query.shape[:-1], -torch.inf, dtype=torch.float32)
