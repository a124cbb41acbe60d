"""What one layer keeps near and brings up ahead: its row caches in the device pool, and its guesses under way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..retrieval import Index
from ..storage import TieredStore
from .page_reader import KEYS_VALUES, PageReader
from .prefetch import Guess, Prefetcher
from .row_cache import RowCache

FIRST_GUESSED = 3
"""The first layer whose query can be told from the input of the layer below: docs/decisions/0018."""
_ROOM = 2
"""Selections that a row cache holds, if the pool has room: what was read lately and is not now comes back soon."""


class Lookahead:
    """Of one layer of one sequence; its index is `index`."""

    def __init__(self, store: TieredStore, layer: int, index: Index, prefetcher: Prefetcher | None) -> None:
        self.store, self.layer, self.index, self.prefetcher = store, layer, index, prefetcher
        self._caches: dict[tuple[int, int], RowCache | None] = {}
        """By tokens per unit and sides; None: the pool has no room for it."""
        self._guesses: list[Guess] = []

    def begin_step(self) -> None:
        """A step has come to this layer: guesses for it are late, and what earlier steps read may go."""
        for guess in self._guesses:
            guess.cancel()
        self._guesses = []
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
            self.stop()
            cache.close()
        cache = RowCache.reserve(self.store, self.layer, unit, sides, _ROOM * needed)
        if cache is not None and cache.num_entries < needed:
            cache.close()
            cache = None
        self._caches[kind] = cache
        return cache

    @property
    def keeps_rows(self) -> bool:
        """Whether guessing rows makes sense: earlier steps kept keys and values."""
        return self.prefetcher is not None and self._cache is not None

    @property
    def _cache(self) -> RowCache | None:
        return next((cache for cache in self._held() if cache.sides == len(KEYS_VALUES)), None)

    def guess_rows(self, query: Callable[[], Tensor], state: object, reader: PageReader, budget: int) -> None:
        """Bring up units for the step that comes to this layer next; `query` as in `Guess`."""
        if self.keeps_rows:
            self._guess("link", Guess(query, self.index, state, reader, budget, self._cache))

    def guess_pages(self, query: Tensor, state: object, reader: PageReader, budget: int) -> None:
        """Bring up pages from disk for the next step, if any page of the sequence is there only."""
        if self.prefetcher is not None and not self.store.is_resident(reader.pids).all():
            self._guess("disk", Guess(lambda: query, self.index, state, reader, budget, None))

    def _guess(self, edge: str, guess: Guess) -> None:
        assert self.prefetcher is not None
        self._guesses.append(guess)
        self.prefetcher.submit(edge, guess)

    def stop(self) -> None:
        """Nothing is under way for this layer any more. To be called before its pages or its index change."""
        for guess in self._guesses:
            guess.cancel(wait=True)
        self._guesses = []

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
