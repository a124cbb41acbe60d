"""Prefetching: what is read soon moves up the tiers while other things are computed.

Before layer l computes, the step guesses what layer l + 1 will read: by the query that layer l + 1 would make of layer
l's input (docs/decisions/0018). From then on two edges have as long as layer l takes:

    host -> device   units that lack, into the layer's row cache. Sent by the step itself and not waited for: on CUDA
                     on a stream of its own
    disk -> host     pages that lack, by a thread, with a queue: reading blocks

A guess selects like a step does, only more, with the index that the step will use. It decides *when* something moves,
never what is read: the step selects with its own query and fetches what is still lacking. So results are the same with
and without. What is still queued when the step comes to the layer is cancelled; it waits for what is on its way.

Guessing takes time itself: as much again as selecting, and the copies. `worth.Worth` measures whether it saves more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from ...storage import StorageError, TieredStore
from .worth import Worth


@dataclass(slots=True, eq=False)
class Errand:
    """Pages `pids` of one layer, to be brought from disk into host memory."""

    store: TieredStore
    pids: np.ndarray
    ended: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self, *, wait: bool = False) -> None:
        """Do not begin it, or stop it soon. With `wait`, return when nothing of it is under way any more."""
        self._cancelled.set()
        if wait:
            self.ended.wait()

    def run(self) -> None:
        if not self.is_cancelled:
            self.store.prefetch(self.pids, lambda: self.is_cancelled)


class Prefetcher:
    """Runs errands on a thread and copies on a stream, which all layers of all sequences share. The thread starts with
    the first errand and ends with `close`.

    Args:
        is_forced: guess whether it pays or not.
    """

    def __init__(self, *, is_forced: bool = False) -> None:
        self._is_forced, self._worth = is_forced, Worth()
        self._guesses: bool | None = None
        """Whether this step guesses; None: nothing was far yet."""
        self._errands: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stream: torch.cuda.Stream | None = None
        self._failure: Exception | None = None

    def submit(self, errand: Errand) -> None:
        """Queue an errand. Raises the exception that an earlier one failed with, unless that was a StorageError:
        whoever reads the pages is told that."""
        if self._failure is not None:
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="stratakv-prefetch", daemon=True)
            self._thread.start()
        self._errands.put(errand)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Goes around a decode step of all layers. Its time tells whether guessing pays."""
        self._guesses, started = None, time.perf_counter()
        yield
        if self._guesses is not None:
            self._worth.note(guessed=self._guesses, seconds=time.perf_counter() - started)

    @property
    def guesses(self) -> bool:
        """Whether this step guesses. To be asked only where what a layer reads may be far away."""
        if self._guesses is None:
            self._guesses = self._is_forced or self._worth.try_it()
        return self._guesses

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """Copies issued inside run on a side stream. Wait for the `row_cache.Arrival` before reading their results."""
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield

    def close(self) -> None:
        """End what is under way. Safe to call twice."""
        if self._thread is not None:
            self._errands.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                errand.run()
            except StorageError:
                errand.cancel()  # whoever reads these pages is told, and can do something about it
            except Exception as error:
                self._failure = error
                errand.cancel()
            errand.store.counters.add(prefetches_cancelled=errand.is_cancelled)
            errand.ended.set()
