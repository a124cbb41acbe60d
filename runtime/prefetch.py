"""Prefetching: what the next step will probably read moves up the tiers while this one computes.

    decode thread   layer l, step t:  select -> attend -> submit(the ranking of step t)      next layer ...
                                                             |
    disk thread                                 pages that are only on disk -> host
                                                             |
    link thread                                 units that the layer's row cache lacks -> device pool

The guess is the ranking itself: of what ranks behind the selection of step t, `AHEAD` of its size is brought up.
Adjacent steps want much the same, and what they newly want ranked close behind (docs/decisions/0018). It is a guess
about *when* something moves, never about what is read: step t + 1 selects with its own query and fetches what is
still lacking, so results are the same with and without.

A job is cancelled when its layer's next step begins: then it is late, and the step's own fetches come first.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..storage import Counters, StorageError
from .page_reader import PageReader
from .row_cache import RowCache

AHEAD = 0.5
"""Units brought up behind a selection, in its size."""


class Prefetch:
    """One layer's wish for its next step.

    Args:
        ranking: fp32 `[G, N]`, the larger the sooner; N units are sealed.
        chosen: units per head that the selection holds. Their keys and values are read.
    """

    def __init__(self, reader: PageReader, cache: RowCache | None, ranking: Tensor, unit: int, chosen: int) -> None:
        self.reader, self.cache, self.ranking, self.unit = reader, cache, ranking, unit
        self.count = min(chosen + int(AHEAD * chosen), ranking.shape[1])
        self.heads = self.units = np.empty(0, dtype=np.int64)
        self.ended = threading.Event()
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self, *, wait: bool = False) -> None:
        """It is too late. With `wait`, nothing of it is under way any more on return."""
        self._cancelled.set()
        if wait:
            self.ended.wait()

    def raise_pages(self) -> None:
        """First stage: decide what to bring, and read its pages into host memory."""
        ranking = self.ranking.cpu().numpy()
        split = ranking.shape[1] - self.count
        ids = np.argpartition(ranking, split, axis=1)[:, split:] if split else np.arange(ranking.shape[1])[None]
        if self.cache is None:
            units = ids.reshape(-1)
        else:
            self.heads, self.units = self.cache.lacking(np.broadcast_to(ids, (len(ranking), self.count)))
            units = self.units
        store, pids = self.reader.store, self.reader.pids
        pages = np.unique(units * self.unit // store.layout.page_size)
        store.prefetch(pids[pages[~store.is_resident(pids[pages])]], lambda: self.is_cancelled)

    def raise_rows(self) -> None:
        """Second stage: copy units into the row cache, a buffer at a time."""
        if self.cache is None:
            return
        for heads, units, staged in self.reader.fetch_ahead(self.heads, self.units, self.unit):
            self.cache.put(heads, units, staged, lambda: self.is_cancelled)
            if self.is_cancelled:
                return


class Prefetcher:
    """Two threads, one per edge; they start with the first job and end with `close`."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._pages: queue.SimpleQueue[Prefetch | None] = queue.SimpleQueue()
        self._rows: queue.SimpleQueue[Prefetch | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._failure: Exception | None = None

    def submit(self, job: Prefetch) -> None:
        """Raises what an earlier job failed with, if it was not the store's to say."""
        if self._failure is not None:
            raise self._failure
        if not self._threads:
            for work in (self._raise_pages, self._raise_rows):
                self._threads.append(threading.Thread(target=work, name="stratakv-prefetch", daemon=True))
                self._threads[-1].start()
        self._pages.put(job)

    def close(self) -> None:
        """End what is under way. Safe to call twice."""
        self._pages.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _raise_pages(self) -> None:
        while (job := self._pages.get()) is not None:
            if self._run(job, job.raise_pages):
                self._rows.put(job)
        self._rows.put(None)

    def _raise_rows(self) -> None:
        while (job := self._rows.get()) is not None:
            if self._run(job, job.raise_rows):
                job.ended.set()

    def _run(self, job: Prefetch, stage: Callable[[], None]) -> bool:
        """Whether the job goes on."""
        try:
            if not job.is_cancelled:
                with torch.inference_mode():
                    stage()
        except StorageError:
            job.cancel()  # whoever reads these pages is told, and can do something about it
        except Exception as error:
            self._failure = error
            job.cancel()
        if job.is_cancelled:
            self._counters.prefetches_cancelled += 1
            job.ended.set()
        return not job.is_cancelled
