"""Pinning in the background, with pins that only take notes."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from kv_pages import SMALL, arena

from stratakv.storage import Arena, TieredStore
from stratakv.storage.memory.pinning import Pinner

DATA = torch.zeros(10, 512, dtype=torch.uint8)


class Notes:
    """Grants `limit` bytes; waits before the range `held` until it may go on."""

    def __init__(self, limit: int = 1 << 30, held: int | None = None) -> None:
        self.limit, self.held = limit, held
        self.ranges: dict[int, int] = {}
        self.calls = 0
        self.reached, self.released = threading.Event(), threading.Event()

    def pin(self, address: int, num_bytes: int) -> bool:
        if self.calls == self.held:
            self.reached.set()
            self.released.wait()
        self.calls += 1
        if sum(self.ranges.values()) + num_bytes > self.limit:
            return False
        self.ranges[address] = num_bytes
        return True

    def unpin(self, address: int) -> None:
        del self.ranges[address]


def test_all_of_it_is_pinned_in_ranges_and_unpinned() -> None:
    notes = Notes()
    pinner = Pinner(DATA, notes, range_bytes=2000)
    pinner.wait()
    assert pinner.pinned_bytes == DATA.nbytes
    start = DATA.data_ptr()
    assert notes.ranges == {start: 2000, start + 2000: 2000, start + 4000: 1120}
    pinner.close()
    pinner.close()
    assert notes.ranges == {}


def test_a_refused_range_leaves_the_rest_pageable(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes(limit=3000)
    with caplog.at_level(logging.WARNING):
        pinner = Pinner(DATA, notes, range_bytes=2000)
        pinner.wait()
    assert (pinner.pinned_bytes, notes.calls) == (2000, 2)
    assert "2000 of 5120 bytes of host memory are pinned" in caplog.text
    pinner.close()
    assert notes.ranges == {}


def test_close_stops_between_ranges() -> None:
    """Interleaving: close is called while the second range is being pinned; no third one is begun."""
    notes = Notes(held=1)
    pinner = Pinner(DATA, notes, range_bytes=1000)
    notes.reached.wait()
    closing = threading.Thread(target=pinner.close)
    closing.start()
    while not pinner._stopping.is_set():
        pass
    notes.released.set()
    closing.join()
    assert (notes.calls, notes.ranges) == (2, {})


def test_a_store_unpins_its_host_arena_at_close() -> None:
    notes = Notes()
    pool = Arena("host", 4 * SMALL.page_bytes, SMALL.page_bytes, torch.device("cpu"), pin=True, pins=notes)
    store = TieredStore(SMALL, 1, host=pool, gpu=arena("gpu", SMALL, 2))
    assert pool.pinner is not None
    pool.pinner.wait()
    assert sum(notes.ranges.values()) == pool.data.nbytes
    store.close()
    assert notes.ranges == {}
