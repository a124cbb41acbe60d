"""Links that are held to a speed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from kv_pages import LARGE, disk_tier, random_pages, read_back, store_on, text

from stratakv.runtime.bench.slow_links import SlowLink, slow_down
from stratakv.storage.transfer.links import Links

COUNT = 12


class Clock:
    """Time that passes in sleep only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("stratakv.runtime.bench.slow_links.time", self)

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_transfer_takes_as_long_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, link = Clock(monkeypatch), SlowLink(1e-6)
    with link.moving() as transfer:
        transfer.num_bytes = 300
        clock.sleep(0.1)
    with link.moving() as transfer:
        transfer.num_bytes = 300
        clock.sleep(0.5)
    assert link.busy_s == pytest.approx(0.3 + 0.5)
    assert clock.now == pytest.approx(100 + 0.3 + 0.5)


def test_transfers_take_turns() -> None:
    link = SlowLink(1e-3)
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


def test_what_is_sent_ahead_arrives_in_turn_and_nobody_waits_before_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, link = Clock(monkeypatch), SlowLink(1e-6)
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
    clock, link = Clock(monkeypatch), SlowLink(1e-6)
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
    of, pages = text(LARGE, COUNT), random_pages(LARGE, COUNT)
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    store.put(0, of.chains, of.tokens, pages)
    store.close()
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT, gpu=COUNT)
    pids = store.adopt(0, of.chains, of.tokens)
    slow_down(store.links, host_gbps=0.004, disk_gbps=0.008)
    assert torch.equal(read_back(store, pids), pages)
    moved = COUNT * LARGE.page_bytes
    assert store.links.disk.busy_s >= moved / 8e6
    assert store.links.host.busy_s >= moved / 4e6
    assert store.counters.stall_s >= store.links.busy_s
    store.close()


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_is_positive(speed: float) -> None:
    with pytest.raises(ValueError, match="more than 0 GB/s"):
        slow_down(Links(), speed, None)
