"""Errands run one after the other on one thread: what is cancelled is not begun, and a failure reaches the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from kv_pages import store_on

from stratakv.runtime.layers.prefetch import Errand, Prefetcher


class Gate:
    """A cancellation that an errand asks about and waits in."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, pids: np.ndarray, is_cancelled: Callable[[], bool]) -> None:
        self.reached.set()
        self.opened.wait()


def errand(work: Callable[[np.ndarray, Callable[[], bool]], None], monkeypatch: pytest.MonkeyPatch) -> Errand:
    """What its store does is `work`."""
    store = store_on(None, host=1)
    monkeypatch.setattr(store, "prefetch", work)
    return Errand(store, np.arange(3))


def fail(pids: np.ndarray, is_cancelled: Callable[[], bool]) -> None:
    raise ZeroDivisionError("of the store")


def test_a_failure_that_is_not_the_stores_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetcher, first = Prefetcher(), errand(fail, monkeypatch)
    prefetcher.submit(first)
    first.ended.wait()
    with pytest.raises(ZeroDivisionError, match="of the store"):
        prefetcher.submit(errand(fail, monkeypatch))
    prefetcher.close()


def test_a_cancelled_errand_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetcher, gate = Prefetcher(), Gate()
    first, second = errand(gate, monkeypatch), errand(fail, monkeypatch)
    prefetcher.submit(first)
    prefetcher.submit(second)
    gate.reached.wait()
    second.cancel()
    gate.opened.set()
    second.cancel(wait=True)
    assert (first.store.counters.prefetches_cancelled, second.store.counters.prefetches_cancelled) == (0, 1)
    prefetcher.submit(errand(gate, monkeypatch))  # would raise what the second had failed with
    prefetcher.close()
