"""One span of a prompt, layer by layer: through those that keep something of it, and for the logits behind its last
token through the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
from torch import Tensor

from ..layers.base import LayerKV
from ..layers.recurrent import mixing
from ..model.latent import AttendHeads, LatentHeads
from ..model.layer_inputs import LayerInputs
from ..model.model import Attend, Model
from ..model.rotary import RotaryTables
from .sequence import PROMPT, Sequence

Turn = Callable[[], AbstractContextManager[None]]
"""Holds the model alone."""


def run_span(
    model: Model, sequence: Sequence, tokens: np.ndarray, chunk: int, last_group: int, *, turn: Turn,
    check: Callable[[], None], report: Callable[[float], None], want_logits: bool,
) -> Tensor | None:  # fmt: skip
    """Append `tokens` in groups of rows that end on the grid of `chunk` or begin at `last_group`. Returns the logits
    behind the last, fp32 `[vocabulary]`, if they are wanted.

    Args:
        turn: for each layer by itself. check: called between groups; raises what ends it. report: told the share done.
    """
    start, count = sequence.num_tokens, len(tokens)
    named = sequence.name_pages(tokens, PROMPT)
    hidden = model.embed_wide(tokens)
    inputs = model.inputs(tokens[None], hidden)
    grid = range((start // chunk + 1) * chunk, start + count, chunk)
    inside = {last_group} & set(range(start + 1, start + count))
    chunks = list(pairwise([start, *sorted({*grid} | inside), start + count]))
    tables, mix = [model.tables(a, b, sequence.past.reach) for a, b in chunks], mixing([sequence.layers])
    for layer, cache in enumerate(sequence.layers[: model.num_writing]):
        with turn():
            cache.begin()
            module = model.layer(layer, prefill=True)
            for (a, b), table in zip(chunks, tables, strict=True):
                check()
                rows, attend = slice(a - start, b - start), _attend(model, cache, a, table)
                more, heads = inputs.of(layer, rows), _attend_heads(model, cache, a, table)
                after = model.run_layer(module, hidden[:, rows], attend, mix, more, heads)
                cache.compare(hidden[:, rows], after)
                hidden[:, rows] = after
                report((layer + (b - start) / count) / model.num_writing)
            named.require_right(sequence)
            cache.finish(named.chains, named.tokens, sequence.tail_len + count)
    sequence.commit(named)
    return _last_logits(model, sequence, hidden[:, -1:], inputs, turn) if want_logits else None


def _last_logits(model: Model, sequence: Sequence, hidden: Tensor, inputs: LayerInputs, turn: Turn) -> Tensor:
    """Logits behind the last token, whose hidden state `[1, 1, C]` the layers left that keep something. Nothing else
    depends on those that share: they run on this token alone."""
    last = sequence.num_tokens - 1
    table = model.tables(last, last + 1, sequence.past.reach)
    for layer in range(model.num_writing, model.num_layers):
        with turn():
            attend, more = _attend(model, sequence.layers[layer], last, table), inputs.of(layer, slice(-1, None))
            hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend, more=more)
    with turn():
        return model.logits(hidden[:, -1])[0]


def _attend(model: Model, cache: LayerKV, start: int, table: RotaryTables) -> Attend:
    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = model.rotate(layer, q, k, table)
        return cache.extend(q[0], k[0], v[0], start, scale).unsqueeze(0)

    return attend


def _attend_heads(model: Model, cache: LayerKV, start: int, table: RotaryTables) -> AttendHeads:
    def attend(layer: int, q: Tensor, k: Tensor, scale: float, heads: LatentHeads) -> Tensor:
        q, k = model.rotate(layer, q, k, table)
        return cache.extend_heads(q[0], k[0], start, scale, heads).unsqueeze(0)

    return attend
