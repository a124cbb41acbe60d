"""The edges of a store count their transfers, and pages come before they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, lose_pages, random_pages, read_back, store_on, text

from stratakv.storage import TieredStore
from stratakv.storage.transfer import clock
from stratakv.storage.transfer.links import Link

COUNT = 12
TEXT = text(LARGE, COUNT)
PAGES = random_pages(LARGE, COUNT)


def spilled(folder: Path, *, host: int, gpu: int | None = None) -> tuple[TieredStore, np.ndarray]:
    """A store whose pages are on disk only."""
    first = store_on(disk_tier(folder), LARGE, host=COUNT)
    first.put(0, TEXT.chains, TEXT.tokens, PAGES)
    first.close()
    store = store_on(disk_tier(folder), LARGE, host=host, gpu=gpu)
    return store, store.adopt(0, TEXT.chains, TEXT.tokens)


def test_a_link_is_busy_while_something_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 100.5, 200.0, 200.25])
    monkeypatch.setattr(clock, "now", lambda: next(now))
    link = Link()
    for passing in (link.moving(), link.sending()):
        with passing as transfer:
            transfer.num_bytes = 1
    assert link.busy_s == 0.75
    assert link.wait(link.due) == 0


def test_nothing_moved_is_no_transfer() -> None:
    link = Link()
    with link.moving():
        pass
    assert link.busy_s == 0


def test_prefetched_pages_are_there_when_asked_for(tmp_path: Path) -> None:
    store, pids = spilled(tmp_path / "s", host=8)
    store.prefetch(pids[:5], lambda: False)
    assert store.is_resident(pids).tolist() == [True] * 5 + [False] * 7
    counters = store.counters
    assert (counters.disk_reads, counters.stall_s, counters.prefetched_bytes) == (0, 0, 5 * LARGE.page_bytes)
    assert torch.equal(read_back(store, pids[:3]), PAGES[:3])
    assert (counters.disk_reads, counters.useful_prefetched_bytes) == (0, 3 * LARGE.page_bytes)
    assert torch.equal(read_back(store, pids[4:]), PAGES[4:])
    assert counters.useful_prefetched_bytes + counters.wasted_prefetched_bytes == 5 * LARGE.page_bytes
    store.check_integrity()
    store.close()


def test_a_cancelled_prefetch_stops(tmp_path: Path) -> None:
    store, pids = spilled(tmp_path / "s", host=8)  # rounds of two pages
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    store.prefetch(pids, cancelled)
    assert store.is_resident(pids).sum() == 4
    store.check_integrity()
    store.close()


def test_a_prefetch_takes_the_place_of_nothing_it_wants(tmp_path: Path) -> None:
    store, pids = spilled(tmp_path / "s", host=4)
    store.prefetch(pids[:3], lambda: False)
    store.prefetch(pids, lambda: False)
    assert store.is_resident(pids).tolist() == [True] * 4 + [False] * 8
    store.prefetch(pids[2:5], lambda: False)
    assert store.is_resident(pids[2:5]).all()
    assert store.counters.wasted_prefetched_bytes == LARGE.page_bytes, "the one that was not wanted and had to go"
    assert torch.equal(read_back(store, pids), PAGES)
    store.check_integrity()
    store.close()


def test_a_prefetch_leaves_damage_to_the_reader(tmp_path: Path) -> None:
    store, pids = spilled(tmp_path / "s", host=8)
    assert store.disk is not None
    lose_pages(store, [pids[1]])
    store.prefetch(pids[:3], lambda: False)
    assert store.is_resident(pids[:3]).tolist() == [True, False, True]
    store.check_integrity()
    store.close()
