"""Guessing what the next step of a layer will read, and having it brought nearer in the meantime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ...retrieval import Index, Selection
from .page_reader import PageReader
from .pages import LayerPages
from .prefetch import Errand, Prefetcher
from .row_cache import RowCache

FIRST_GUESSED = 3
"""The first layer whose query can be told from the input of the layer below: docs/decisions/0018."""
MORE = 1.25
"""A guess selects so many times as much as the step will. What is newly wanted ranked close behind."""


class Lookahead:
    """The guesses of one layer of one sequence.

    Args:
        reader: of the layer's `pages`.
        index: chooses the guess as it will choose the step's tokens.
        prefetcher: None: nothing is guessed.
    """

    def __init__(self, pages: LayerPages, reader: PageReader, index: Index, prefetcher: Prefetcher | None) -> None:
        self._pages, self._store, self._reader = pages, pages.store, reader
        self._index, self._prefetcher = index, prefetcher
        self._errands: list[Errand] = []

    def begin_step(self) -> None:
        """A step has come to this layer: what is still queued for it is late."""
        for errand in self._errands:
            errand.cancel()
        self._errands = []

    def guess(self, query: Callable[[], Tensor], state: object, budget: int) -> None:
        """Bring up what the step that comes to this layer next will probably read, where that may be far away: what it
        would choose from `state`, within `budget` and some more, with `query()` (`[G, R, D]` fp32, rotated and scaled).
        """
        sealed = self._pages.sealed
        more = min(int(MORE * budget), sealed - self._pages.layout.page_size)
        if more >= budget:  # otherwise it is as good as everything: there is nothing to guess
            self._bring_up(lambda: self._index.select(state, query(), sealed, more))

    def bring(self, chosen: Selection) -> None:
        """Bring up what another layer has chosen for this one, where that may be far away."""
        self._bring_up(lambda: chosen)

    def _bring_up(self, choose: Callable[[], Selection]) -> None:
        prefetcher = self._prefetcher
        if prefetcher is None:
            return
        cache = next((cache for cache in self._reader.row_caches() if cache.sides == self._store.layout.sides), None)
        if cache is None and self._store.is_resident(self._pages.pids).all():
            return
        if prefetcher.guesses:
            self._bring(choose(), cache, prefetcher)

    def _bring(self, chosen: Selection, cache: RowCache | None, prefetcher: Prefetcher) -> None:
        ids, size, pids = chosen.ids.cpu().numpy(), self._pages.layout.page_size, self._pages.pids
        self._store.counters.add(prefetches=1)
        if cache is None:
            self._fetch_pages(pids[np.unique(ids * chosen.unit // size)], prefetcher)
        elif cache.unit == chosen.unit:
            heads, units = cache.lacking(ids)
            wanted = pids[units * cache.unit // size]
            near = self._store.is_resident(wanted)
            with prefetcher.aside(chosen.ids.device):
                for some_heads, some, staged in self._reader.fetch_ahead(heads[near], units[near], cache.unit):
                    cache.put(some_heads, some, staged)
            self._fetch_pages(np.unique(wanted[~near]), prefetcher)

    def _fetch_pages(self, pids: np.ndarray, prefetcher: Prefetcher) -> None:
        if not self._store.is_resident(pids).all():
            self._errands.append(Errand(self._store, pids))
            prefetcher.submit(self._errands[-1])

    def stop(self) -> None:
        """Cancel all guesses, and wait for what is under way. To be called before the layer's pages change."""
        for errand in self._errands:
            errand.cancel(wait=True)
        self._errands = []
