"""What one layer keeps near and brings up ahead: its row caches in the device pool, and its guesses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ...retrieval import Index, Selection
from ...storage import TieredStore
from .page_reader import KEYS_VALUES, PageReader
from .prefetch import Errand, Prefetcher
from .row_cache import RowCache

FIRST_GUESSED = 3
"""The first layer whose query can be told from the input of the layer below: docs/decisions/0018."""
MORE = 1.25
"""A guess selects so many times as much as the step will. What is newly wanted ranked close behind."""
_ROOM = 2
"""Selections that a row cache holds, if the pool has room: what was read lately and is not now comes back soon."""


class Lookahead:
    """Of one layer of one sequence; its index is `index`."""

    def __init__(self, store: TieredStore, layer: int, index: Index, prefetcher: Prefetcher | None) -> None:
        self.store, self.layer, self.index, self.prefetcher = store, layer, index, prefetcher
        self._caches: dict[tuple[int, int], RowCache | None] = {}
        """By tokens per unit and sides; None: the pool has no room for it."""
        self._errands: list[Errand] = []

    def begin_step(self) -> None:
        """A step has come to this layer: what is still queued for it is late, and what earlier steps read may go."""
        for errand in self._errands:
            errand.cancel()
        self._errands = []
        for cache in self._held():
            cache.begin_step()

    def rows(self, unit: int, sides: int, budget: int, num_pages: int) -> RowCache | None:
        """Where a step that reads `budget` tokens keeps their rows; None where all pages of the sequence fit the device
        pool, or the rows do not."""
        gpu, kind = self.store.gpu, (unit, sides)
        if gpu is None or num_pages < gpu.num_slots // max(self.store.num_layers, 1):
            return None
        needed = -(-budget // unit)
        if kind in self._caches:
            cache = self._caches[kind]
            if cache is None or cache.num_entries >= needed:
                return cache
            cache.close()
        cache = RowCache.reserve(self.store, self.layer, unit, sides, _ROOM * needed)
        if cache is not None and cache.num_entries < needed:
            cache.close()
            cache = None
        self._caches[kind] = cache
        return cache

    def guess(self, query: Callable[[], Tensor], state: object, reader: PageReader, budget: int) -> None:
        """Bring up what the step that comes to this layer next will probably read, where that may be far away: what it
        would select with `query()` `[G, R, D]`, rotated and scaled, fp32."""
        if self.prefetcher is None:
            return
        cache = next((cache for cache in self._held() if cache.sides == len(KEYS_VALUES)), None)
        if cache is None and self.store.is_resident(reader.pids).all():
            return
        size = self.store.layout.page_size
        sealed = len(reader.pids) * size
        more = min(int(MORE * budget), sealed - size)
        if more < budget:
            return  # as good as everything: there is nothing to guess
        if self.prefetcher.guesses:
            self._bring(self.index.select(state, query(), sealed, more), reader, cache, self.prefetcher)

    def _bring(self, chosen: Selection, reader: PageReader, cache: RowCache | None, prefetcher: Prefetcher) -> None:
        ids, size = chosen.ids.cpu().numpy(), self.store.layout.page_size
        self.store.counters.add(prefetches=1)
        if cache is None:
            self._fetch_pages(reader.pids[np.unique(ids * chosen.unit // size)], prefetcher)
        elif cache.unit == chosen.unit:
            heads, units = cache.lacking(ids)
            pids = reader.pids[units * cache.unit // size]
            near = self.store.is_resident(pids)
            with prefetcher.aside(chosen.ids.device):
                for some_heads, some, staged in reader.fetch_ahead(heads[near], units[near], cache.unit):
                    cache.put(some_heads, some, staged)
            self._fetch_pages(np.unique(pids[~near]), prefetcher)

    def _fetch_pages(self, pids: np.ndarray, prefetcher: Prefetcher) -> None:
        if not self.store.is_resident(pids).all():
            self._errands.append(Errand(self.store, pids))
            prefetcher.submit(self._errands[-1])

    def stop(self) -> None:
        """Nothing is under way for this layer any more. To be called before its pages change."""
        for errand in self._errands:
            errand.cancel(wait=True)
        self._errands = []

    def truncate(self, num_tokens: int) -> None:
        """Forget rows from `num_tokens` on: others may take those positions."""
        self.stop()
        for cache in self._held():
            cache.truncate(num_tokens // cache.unit)

    def close(self) -> None:
        """Give the pool's room back."""
        self.stop()
        for cache in self._held():
            cache.close()
        self._caches = {}

    def _held(self) -> list[RowCache]:
        return [cache for cache in self._caches.values() if cache is not None]
