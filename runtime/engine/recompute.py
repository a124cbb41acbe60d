"""Damaged pages, made again from their tokens.

The rebuilt KV is that of an exact prefill; where a page held generated tokens it replaces KV that sparse
decoding had produced.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ...storage import CorruptPageError, TieredStore
from ..layers.base import LayerKV
from ..layers.tiered import TieredLayer, tiered_layers
from ..model.model import Model

logger = logging.getLogger(__name__)


@torch.inference_mode()
def recompute(model: Model, store: TieredStore, layers: list[LayerKV], reach: int, layer: int, pids: list[int]) -> None:
    """Rebuild the damaged pages `pids` of `layer`, reading only the pages before them.

    Args:
        layers: of the sequence, whose KV has that `reach`.

    Raises:
        CorruptPageError: the model has sliding or recurrent layers, whose past is gone. The records are
            deleted, so that reading the text again computes them.
    """
    tiered = tiered_layers(layers)
    if len(tiered) < len(layers):
        names = store.delete_damaged(pids)
        raise CorruptPageError(
            f"{len(pids)} stored page(s) of layer {layer} are damaged ({names}) and cannot be recomputed alone "
            "for a model with sliding-window or recurrent layers; start a new conversation and read the text again",
            pids,
        )
    cache, size = tiered[layer], store.layout.page_size
    for pid in pids:
        start = int(np.flatnonzero(cache.pids == pid)[0]) * size
        tokens, name = store.describe(pid)
        logger.warning(
            "page %s (layer %d, tokens %d-%d) was damaged: recomputing it", name, layer, start, start + size - 1
        )
        page = _page(model, tiered, reach, layer, start, tokens).to(getattr(torch, store.layout.dtype))
        store.replace(pid, page.contiguous().view(torch.uint8).view(-1))


def _page(model: Model, layers: list[TieredLayer], reach: int, layer: int, start: int, tokens: np.ndarray) -> Tensor:
    """K and V `[G, S, L, D]` of the page of `layer` that begins at position `start`."""
    table = model.tables(start, start + len(tokens), reach)
    found: list[Tensor] = []

    def attend(at: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = model.rotate(at, q, k, table)
        if at == layer:
            found.extend((k[0], v[0])[: layers[at].layout.sides])
            return q.new_zeros(*q.shape[:-1], v.shape[-1])
        return layers[at].span.attend(q[0], k[0], v[0], start, scale).unsqueeze(0)

    hidden = model.embed_wide(tokens)
    for at in range(layer + 1):
        hidden = model.run_layer(model.layer(at, prefill=True), hidden, attend)
    return torch.stack(found, 1)
