"""Making what sequences hold: the layers of a `Past`, with indexes that know its positions."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Protocol

from ...retrieval import Index
from ...retrieval.placement import Placement
from ...storage import TieredStore
from ..api.config import KVConfig
from ..layers.base import LayerKV
from ..layers.prefetch import Prefetcher
from ..layers.recurrent import RecurrentLayer
from ..layers.sharing import sharing
from ..layers.sliding import SlidingLayer
from ..layers.tiered import TieredLayer, tiered_layers
from ..layers.workspace import Workspace
from ..model.model import Model
from .recompute import recompute
from .sequence import Past

_KEPT = 4
"""Turned indexes are kept for so many reaches."""
_TURNED: weakref.WeakKeyDictionary[Index, dict[int, Index]] = weakref.WeakKeyDictionary()
"""Engines may share an index; a state can be copied between sequences whose index is the same."""


class Closeable(Protocol):
    def close(self) -> None: ...


class Pasts:
    """Makes the pasts of one engine's sequences."""

    def __init__(
        self,
        model: Model,
        store: TieredStore,
        indexes: dict[int, Index],
        config: KVConfig,
        workspace: Workspace,
        prefetcher: Prefetcher | None,
        placements: dict[int, Placement],
    ) -> None:
        self.placements = placements
        self.model, self.store, self.indexes, self.config = model, store, indexes, config
        self.workspace, self.prefetcher = workspace, prefetcher
        self.abandoned: deque[Closeable] = deque()
        """Sequences of conversations that were dropped without being closed, and pasts that no sequence can come back
        to: the next turn gives their pages up. A garbage collector may come at any moment, also while the store is in
        the middle of something."""

    def new(self, reach: int = 0, *, keep_queries: bool = False, keep_rows: bool = False) -> Past:
        """Make an empty past. With `keep_queries` it also keeps the queries that indexes learn from, and with
        `keep_rows` all of a prompt's, for placements."""
        past, placing = Past(reach), self.config.placing
        is_visible = placing is not None and placing.is_visible
        for layer, source in enumerate(self.model.sources):
            if source != layer:
                recover = partial(recompute, self.model, self.store, past.layers, self.without_pages, reach, source)
                past.layers.append(sharing(layer, past.layers[source], recover))
                continue
            if (other := self.without_pages(layer)) is not None:
                past.layers.append(other)
                continue
            recover = partial(recompute, self.model, self.store, past.layers, self.without_pages, reach, layer)
            tiered = TieredLayer(
                layer, self.store, self._index(layer, reach), self.workspace, self.config.budget_tokens, recover,
                repeats=self.model.num_heads // self.model.num_kv_heads, prefetcher=self.prefetcher,
                keep_queries=keep_queries, keep_rows=keep_rows, sinks=self.model.sinks[layer],
                placement=self.placements.get(layer), is_visible=is_visible, choices=past.choices,
            )  # fmt: skip
            past.layers.append(tiered)
        return past

    def without_pages(self, layer: int) -> LayerKV | None:
        """Make a sliding or recurrent layer that has seen nothing; None: the layer of that number has pages."""
        layout, model = self.store.layout, self.model
        window, state = model.windows[layer], model.states[layer]
        if state is not None:
            return RecurrentLayer(layer, state, layout.page_size, model.device)
        if window is not None:
            _, kv_heads, dim = model.shapes[layer]
            layout = replace(layout, num_heads=kv_heads, head_dim=dim)
            return SlidingLayer(layer, window, layout, model.dtype, model.device, model.sinks[layer])
        return None

    def instead_of(self, past: Past, reach: int) -> Past:
        """Make an empty past for the same sequence. Either gives its pages up as soon as nothing leads back to it."""
        tiered = tiered_layers(past.layers)
        new = self.new(reach, keep_queries=any(layer.upkeep.queries.kept is not None for layer in tiered))
        for old, layer in zip(tiered, tiered_layers(new.layers), strict=True):
            layer.watch = old.watch
        for each in (past, new):
            if not each.is_watched:
                each.is_watched = True
                weakref.finalize(each, self.abandoned.append, _rest_of(each)).atexit = False
        return new

    def _index(self, layer: int, reach: int) -> Index:
        index = self.indexes[layer]
        if reach == 0:
            return index
        turned = _TURNED.setdefault(index, {})
        if reach not in turned:
            if len(turned) == _KEPT:
                del turned[next(iter(turned))]
            known = replace(index.layer, rotation=self.model.rotation(layer, reach))
            turned[reach] = type(index)(index.params, known, index.options)
        return turned[reach]


def _rest_of(past: Past) -> Past:
    """What is to be given up when `past` has gone."""
    return Past(past.reach, past.layers, device_steps=past.device_steps)
