"""Edges that are held to a speed, and pages that come before they are asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, random_pages, read_back, store_on, text

from stratakv.storage import TieredStore
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


def test_a_transfer_takes_as_long_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, link = Clock(monkeypatch), Link()
    link.bytes_per_s = 1e6
    with link.moving() as transfer:
        transfer.num_bytes = 20_000
    assert clock.now == pytest.approx(100.02)
    assert link.busy_s == pytest.approx(0.02)


def test_transfers_take_turns() -> None:
    link = Link()
    link.bytes_per_s = 1e6
    inside, most = 0, 0
    lock = threading.Lock()

    def move() -> None:
        nonlocal inside, most
        with link.moving() as transfer:
            with lock:
                inside += 1
                most = max(most, inside)
            transfer.num_bytes = 2000
            with lock:
                inside -= 1

    threads = [threading.Thread(target=move) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert link.busy_s >= 0.01


def test_nothing_moved_is_no_transfer() -> None:
    link = Link()
    with link.moving():
        pass
    assert link.busy_s == 0


class Clock:
    """Time that passes in sleep only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("stratakv.storage.transfer.links.time", self)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_sent_ahead_arrives_in_turn_and_nobody_waits_before_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, link = Clock(monkeypatch), Link()
    link.bytes_per_s = 1000
    dues = []
    for num_bytes in (1000, 2000):
        with link.sending() as transfer:
            transfer.num_bytes = num_bytes
        dues.append(link.due)
    assert clock.now == 100
    clock.sleep(0.5)
    assert link.wait(dues[0]) == pytest.approx(0.5)
    assert link.wait(dues[1]) == pytest.approx(2)
    assert link.wait(dues[0]) == 0
    assert link.busy_s == pytest.approx(3)


def test_what_somebody_waits_for_goes_before_what_is_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, link = Clock(monkeypatch), Link()
    link.bytes_per_s = 1000
    with link.sending() as transfer:
        transfer.num_bytes = 1000
    due = link.due
    with link.moving() as transfer:
        transfer.num_bytes = 300
    assert clock.now == pytest.approx(100.3)
    assert link.wait(due) == pytest.approx(1), "it had not begun"
    with link.moving() as transfer:
        transfer.num_bytes = 700
    assert link.wait(link.due) == 0, "nothing was on its way"


def test_both_edges_are_throttled(tmp_path: Path) -> None:
    store, pids = spilled(tmp_path / "s", host=COUNT, gpu=COUNT)
    store.links.hold_to(host_gbps=0.004, disk_gbps=0.008)
    read_back(store, pids)
    moved = COUNT * LARGE.page_bytes
    assert store.links.disk.busy_s >= moved / 8e6
    assert store.links.host.busy_s >= moved / 4e6
    assert store.counters.stall_s >= store.links.busy_s
    store.links.hold_to(None, None)
    assert torch.equal(read_back(store, pids), PAGES)
    store.close()


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_is_positive(speed: float) -> None:
    store = store_on(None, LARGE, host=1)
    with pytest.raises(ValueError, match="more than 0 GB/s"):
        store.links.hold_to(speed, None)
    store.close()


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
    store.disk.delete_pages([store._table.keys[pids[1]]])
    store.prefetch(pids[:3], lambda: False)
    assert store.is_resident(pids[:3]).tolist() == [True, False, True]
    store.check_integrity()
    store.close()
