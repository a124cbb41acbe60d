"""Prefetching: what is read soon moves up the tiers while other things are computed.

Two edges, two guesses, each as far ahead as its transfers are slow (docs/decisions/0018):

    link   host -> device   units of layer l + 1, guessed while layer l computes: by the query that layer l + 1 would
                            make of layer l's input. The first layers change their input too much for that: there by
                            the query of the last step
    disk   disk -> host     pages of layer l in step t + 1, guessed by the query of step t

A guess selects like a step does, only more, with the index that the step will use. It decides *when* something moves,
never what is read: the step selects with its own query and fetches what is still lacking. So results are the same with
and without.

A guess is cancelled when the step that it is for comes to its layer: it is then late, and what the step fetches itself
comes first.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..retrieval import Index
from ..storage import StorageError
from .page_reader import PageReader
from .row_cache import RowCache

MORE = 1.25
"""A guess selects so many times as much as the step will. What is newly wanted ranked close behind."""


@dataclass(slots=True, eq=False)
class Guess:
    """What one layer of one sequence will probably read, and where that is to be brought.

    Attributes:
        query: gives `[G, R, D]`, rotated and scaled, fp32; called on the thread that works on the guess.
        reader: over the layer's sealed pages. budget: tokens that the step will read of them.
        cache: where units are brought; None: their pages, into host memory.
    """

    query: Callable[[], Tensor]
    index: Index
    state: object
    reader: PageReader
    budget: int
    cache: RowCache | None
    ended: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self, *, wait: bool = False) -> None:
        """It is too late. With `wait`, nothing of it is under way any more on return."""
        self._cancelled.set()
        if wait:
            self.ended.wait()

    def bring(self) -> None:
        """Select, and move what lacks."""
        reader = self.reader
        store, page_size = reader.store, reader.store.layout.page_size
        sealed = len(reader.pids) * page_size
        budget = min(int(MORE * self.budget), sealed - page_size)
        if budget < self.budget:
            return  # as good as everything: there is nothing to guess
        chosen = self.index.select(self.state, self.query(), sealed, budget)
        if self.is_cancelled:
            return
        ids = chosen.ids.cpu().numpy()
        if self.cache is None:
            pids = reader.pids[np.unique(ids * chosen.unit // page_size)]
            store.prefetch(pids[~store.is_resident(pids)], lambda: self.is_cancelled)
        elif chosen.unit == self.cache.unit:
            heads, units = self.cache.lacking(ids)
            for some_heads, some, staged in reader.fetch_ahead(heads, units, chosen.unit):
                self.cache.put(some_heads, some, staged, lambda: self.is_cancelled)
                if self.is_cancelled:
                    return


class Prefetcher:
    """A thread per edge; they start with the first guess and end with `close`."""

    def __init__(self) -> None:
        self._queues: dict[str, queue.SimpleQueue[Guess | None]] = {}
        self._threads: list[threading.Thread] = []
        self._failure: Exception | None = None

    def submit(self, edge: str, guess: Guess) -> None:
        """Raises what an earlier guess failed with, if that was not the store's to say."""
        if self._failure is not None:
            raise self._failure
        if edge not in self._queues:
            self._queues[edge] = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(edge,), name=f"stratakv-{edge}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queues[edge].put(guess)

    def close(self) -> None:
        """End what is under way. Safe to call twice."""
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()
        self._queues, self._threads = {}, []

    def _work(self, edge: str) -> None:
        torch.set_num_threads(1)  # of this thread: the cores are busy computing
        waiting = self._queues[edge]
        while (guess := waiting.get()) is not None:
            try:
                if not guess.is_cancelled:
                    with torch.inference_mode():
                        guess.bring()
            except StorageError:
                guess.cancel()  # whoever reads these pages is told, and can do something about it
            except Exception as error:
                self._failure = error
                guess.cancel()
            guess.reader.store.count(prefetches=1, prefetches_cancelled=guess.is_cancelled)
            guess.ended.set()
