"""Tokens that are already known, appended as decode would append them one by one (teacher forcing)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ..layers.recurrent import mixing
from ..model.model import Model
from .sequence import GENERATED, Sequence


def append_known(model: Model, sequence: Sequence, tokens: np.ndarray, check: Callable[[], None]) -> Tensor:
    """Append `tokens` as `Engine.decode_known` does; the rotary tables that the sequence has must reach them. After an
    exception the sequence must be rolled back.

    Args:
        check: called between layers.
    """
    start, count = sequence.num_tokens, len(tokens)
    named = sequence.name_pages(tokens, GENERATED)
    table = model.tables(start, start + count, sequence.past.reach)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = model.rotate(layer, q, k, table)
        out = sequence.layers[layer].extend_known(q[0], k[0], v[0], start, scale, named.chains, named.tokens)
        return out.unsqueeze(0)

    hidden, mix = model.embed_wide(tokens), mixing([sequence.layers])
    inputs = model.inputs(tokens[None], hidden)
    for layer in range(model.num_layers):
        check()
        hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend, mix, inputs.of(layer))
    named.require_right(sequence)
    sequence.commit(named)
    return model.logits(hidden[0])
