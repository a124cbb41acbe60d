"""Tokens that are already known, appended as decode would append them one by one (teacher forcing).

Where layers share, what they attend to must not be ahead of them by more than the open page, of whose tokens each row
can leave out those behind it: there the tokens come by pages, each of which is published when all layers have it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
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
    if model.num_writing == model.num_layers:
        return _append(model, sequence, tokens, check, by_page=False)
    first = sequence.page_size - sequence.tail_len
    pages = np.split(tokens, range(first, len(tokens), sequence.page_size))
    return torch.cat([_append(model, sequence, page, check, by_page=True) for page in pages])


def _append(
    model: Model, sequence: Sequence, tokens: np.ndarray, check: Callable[[], None], *, by_page: bool
) -> Tensor:
    """The same in one piece. `by_page`: they fill the open page at most, which layers publish afterwards."""
    start, count = sequence.num_tokens, len(tokens)
    named = sequence.name_pages(tokens, GENERATED)
    chains, pages = ([], named.tokens[:0]) if by_page else (named.chains, named.tokens)
    table = model.tables(start, start + count, sequence.past.reach)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = model.rotate(layer, q, k, table)
        out = sequence.layers[layer].extend_known(q[0], k[0], v[0], start, scale, chains, pages)
        return out.unsqueeze(0)

    hidden, mix = model.embed_wide(tokens), mixing([sequence.layers])
    inputs = model.inputs(tokens[None], hidden)
    for layer in range(model.num_layers):
        check()
        hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend, mix, inputs.of(layer))
    named.require_right(sequence)
    if by_page:
        sequence.seal(named)
    sequence.commit(named)
    return model.logits(hidden[0])
