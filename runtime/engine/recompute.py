"""Damaged pages, made again from their tokens.

The rebuilt KV is that of an exact prefill; where a page held generated tokens it replaces KV that sparse
decoding had produced.

Only the layers below a page's have to be computed. Those that have pages read what was before; sliding and recurrent
ones keep nothing of it, so they go through the text again from the nearest state that was left in it (`prefixes`), at
last from its beginning: as layers of their own, for those of the sequence stand elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...storage import CHAIN_BYTES, TieredStore
from ..layers.base import LayerKV
from ..layers.recurrent import mixing
from ..layers.stored import stored_state
from ..layers.tiered import TieredLayer, tiered_layers
from ..model.model import Model

logger = logging.getLogger(__name__)

_ROWS = 2048
"""Tokens that go through the layers at a time."""


@torch.inference_mode()
def recompute(
    model: Model, store: TieredStore, layers: list[LayerKV], fresh: Callable[[int], LayerKV | None], reach: int,
    layer: int, pids: list[int],
) -> None:  # fmt: skip
    """Rebuild the damaged pages `pids` of `layer`, reading only the pages before them.

    Args:
        layers: of the sequence, whose KV has that `reach`.
        fresh: makes the layer of a number anew; None if it has pages.
    """
    (cache,) = (each for each in tiered_layers(layers) if each.layer == layer)
    size, way = store.layout.page_size, _Way(model, store, layers, fresh, reach, cache)
    places = {int(np.flatnonzero(cache.pids == pid)[0]) * size: pid for pid in pids}
    with model.aside():  # whoever met them may be in the midst of a layer above, which shares this one's pages
        for start, pid in sorted(places.items()):
            tokens, key = store.describe(pid)
            logger.warning(
                "page %s (layer %d, tokens %d-%d) was damaged: recomputing it",
                key.hex(), layer, start, start + size - 1,
            )  # fmt: skip
            way.go_to(start)
            page = way.page(tokens).to(getattr(torch, store.layout.dtype))
            store.replace(pid, page.contiguous().view(torch.uint8).view(-1))


class _Way:
    """A way through the layers below that of `cache`, along the text."""

    def __init__(
        self, model: Model, store: TieredStore, layers: list[LayerKV], fresh: Callable[[int], LayerKV | None],
        reach: int, cache: TieredLayer,
    ) -> None:  # fmt: skip
        self.model, self.store, self.reach, self.cache = model, store, reach, cache
        own = {at: new for at in range(cache.layer) if (new := fresh(at)) is not None}
        self.own = list(own.values())
        """Stand at `position`; the others, which have pages, are the sequence's."""
        self.layers = [own.get(at, layers[at]) for at in range(cache.layer)]
        self.spans = {each.layer: each.span for each in tiered_layers(self.layers)}
        self.position = 0

    def go_to(self, start: int) -> None:
        """Be at the page that begins at `start`, which is not before `position`."""
        if not self.own:
            self.position = start
            return
        self._take_up_state(start)
        size = self.store.layout.page_size
        while self.position < start:
            some = self.cache.pids[self.position // size : min(start, self.position + _ROWS) // size]
            self._pass(np.concatenate([self.store.describe(pid)[0] for pid in some.tolist()]))

    def _take_up_state(self, start: int) -> None:
        """Be where the nearest state was left, if that is between here and `start`."""
        size = self.store.layout.page_size
        for count in range(start // size, self.position // size, -1):
            _, key = self.store.describe(int(self.cache.pids[count - 1]))
            left = stored_state(self.store.disk, key[-CHAIN_BYTES:], self.own, count * size)
            if left is not None:
                for layer in self.own:
                    layer.adopt([], np.empty((0, size), dtype=np.uint32), count * size, left[0])
                self.position = count * size
                return

    def page(self, tokens: np.ndarray) -> Tensor:
        """Go on by a page and return its K and V `[G, S, L, D]` in the layer above."""
        hidden, found = self._pass(tokens), list[Tensor]()
        top, tables = self.cache.layer, self.model.tables(self.position - len(tokens), self.position, self.reach)

        def keep(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = self.model.rotate(layer, q, k, tables)
            found.extend((k[0], v[0])[: self.cache.layout.sides])
            return q.new_zeros(*q.shape[:-1], v.shape[-1])

        self.model.run_layer(self.model.layer(top, prefill=True), hidden, keep)
        return torch.stack(found, 1)

    def _pass(self, tokens: np.ndarray) -> Tensor:
        """Go on by these tokens and return what comes out of the layers, `[1, T, hidden]`."""
        start = self.position
        tables, mix = self.model.tables(start, start + len(tokens), self.reach), mixing([self.layers])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = self.model.rotate(layer, q, k, tables)
            if layer in self.spans:
                return self.spans[layer].attend(q[0], k[0], v[0], start, scale)[0].unsqueeze(0)
            return self.layers[layer].extend(q[0], k[0], v[0], start, scale).unsqueeze(0)

        hidden = self.model.embed_wide(tokens)
        inputs = self.model.inputs(tokens[None], hidden)
        for layer in range(self.cache.layer):
            module, more = self.model.layer(layer, prefill=True), inputs.of(layer)
            hidden = self.model.run_layer(module, hidden, attend, mix, more)
        self.position += len(tokens)
        return hidden
