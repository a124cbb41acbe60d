"""Two-phase loads: tickets, and threads that load what others load."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, lose_pages, random_pages, read_back, store_on, text
from tickets import begin, end, finish

from stratakv.storage import ClosedError, CorruptPageError, DiskTier, TieredStore

COUNT = 40
TEXT = text(LARGE, COUNT)
PAGES = random_pages(LARGE, COUNT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's folder that holds all pages."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    store.put(0, TEXT.chains, TEXT.tokens, PAGES)
    store.close()
    return tmp_path / "s"


def opened(folder: Path, *, host: int, gpu: int | None = None) -> tuple[TieredStore, DiskTier, np.ndarray]:
    disk = disk_tier(folder)
    store = store_on(disk, LARGE, host=host, gpu=gpu)
    return store, disk, store.adopt(0, TEXT.chains, TEXT.tokens)


def free_slots(store: TieredStore) -> int:
    return store.host.num_free


def test_a_finished_load_needs_no_disk_later(folder: Path) -> None:
    store, _, pids = opened(folder, host=10)
    ticket = begin(store, pids[:6])
    assert not store.is_resident(pids[:6]).any()
    assert free_slots(store) == 4
    store.check_integrity()
    finish(store, ticket)
    assert store.is_resident(pids[:6]).all()
    assert torch.equal(read_back(store, pids[:6]), PAGES[:6])
    assert store.counters.disk_reads == 0
    assert not store.host.leases.any()
    store.check_integrity()
    store.close()


def test_ending_unread_returns_slots_leases_and_references(folder: Path) -> None:
    store, _, pids = opened(folder, host=6)
    read_back(store, pids[:2])
    ticket = begin(store, pids[:5])
    assert store.host.leases.sum() == 2
    assert free_slots(store) == 1
    end(store, ticket)
    assert free_slots(store) == 4
    assert not store.host.leases.any()
    assert store._table.refs[pids].tolist() == [1] * COUNT
    with pytest.raises(AssertionError, match="ended twice"):
        end(store, ticket)
    store.check_integrity()
    store.close()


def test_a_page_of_a_ticket_stays_whoever_needs_room(folder: Path) -> None:
    """Eviction pressure between begin and finish: neither the leased page nor the reserved slots go."""
    store, _, pids = opened(folder, host=6)
    read_back(store, pids[:2])
    ticket = begin(store, pids[:4])
    for start in range(10, 40, 5):
        assert torch.equal(read_back(store, pids[start : start + 5]), PAGES[start : start + 5])
        assert store.is_resident(pids[:2]).all()
        store.check_integrity()
    finish(store, ticket)
    assert store.is_resident(pids[:4]).all()
    before = store.counters.disk_reads
    assert torch.equal(read_back(store, pids[:4]), PAGES[:4])
    assert store.counters.disk_reads == before
    store.close()


def test_what_the_host_has_no_room_for_is_named(folder: Path) -> None:
    store, _, pids = opened(folder, host=3)
    ticket = begin(store, pids[:8])
    assert ticket.beyond.tolist() == pids[3:8].tolist()
    finish(store, ticket)
    assert store.is_resident(pids[:8]).sum() == 3
    store.close()


def test_a_released_page_keeps_its_id_while_it_is_loaded(folder: Path) -> None:
    """Else the id could be given to another page, which would then read as this one."""
    store, _, pids = opened(folder, host=6)
    ticket = begin(store, pids[:2])
    store.release(pids[:2])
    other = store.put(1, TEXT.chains[:2], TEXT.tokens[:2], PAGES[2:4])
    assert not set(other.tolist()) & set(pids[:2].tolist())
    finish(store, ticket)
    assert torch.equal(read_back(store, other), PAGES[2:4])
    again = store.adopt(0, TEXT.chains[:2], TEXT.tokens[:2])
    assert torch.equal(read_back(store, again), PAGES[:2])
    store.check_integrity()
    store.close()


def test_damage_is_named_and_the_rest_is_loaded(folder: Path) -> None:
    store, _, pids = opened(folder, host=6)
    lose_pages(store, [pids[1]])
    with pytest.raises(CorruptPageError) as caught:
        finish(store, begin(store, pids[:4]))
    assert caught.value.pages == [pids[1]]
    assert store.is_resident(pids[:4]).tolist() == [True, False, True, True]
    assert free_slots(store) == 3
    store.check_integrity()
    store.close()


def test_an_error_while_reading_gives_everything_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk, pids = opened(folder, host=6)

    def broken(*args: object) -> dict[int, str]:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "read_pages", broken)
        for call in (lambda: finish(store, begin(store, pids[:4])), lambda: read_back(store, pids[:9])):
            with pytest.raises(OSError, match="gone"):
                call()
            assert free_slots(store) == 6
            store.check_integrity()
    assert torch.equal(read_back(store, pids[:9]), PAGES[:9])
    store.close()


def test_a_ticket_outlives_its_store_only_to_be_ended(folder: Path) -> None:
    store, _, pids = opened(folder, host=6)
    first, second = begin(store, pids[:2]), begin(store, pids[2:4])
    store.close()
    with pytest.raises(ClosedError):
        finish(store, first)
    end(store, second)
    assert free_slots(store) == 6


# Threads


class Gate:
    """Holds a disk's reads until it is opened; says when one has begun, and counts reads by key."""

    def __init__(self, disk: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        self.reads: Counter[bytes] = Counter()
        read_pages = disk.read_pages

        def held(keys: list[bytes], *rest: Any) -> dict[int, str]:
            self.begun.set()
            self.opened.wait()
            self.reads.update(keys)
            return read_pages(keys, *rest)

        monkeypatch.setattr(disk, "read_pages", held)


def started(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_the_store_works_while_another_thread_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk, pids = opened(folder, host=10)
    read_back(store, pids[:2])
    gate = Gate(disk, monkeypatch)
    thread = started(lambda: finish(store, begin(store, pids[5:9])))
    gate.begun.wait()
    assert torch.equal(read_back(store, pids[:2]), PAGES[:2])
    store.release(store.put(1, TEXT.chains[:2], TEXT.tokens[:2], PAGES[:2]))
    store.check_integrity()
    gate.opened.set()
    thread.join()
    assert store.is_resident(pids[5:9]).all()
    store.close()


def test_a_page_that_is_coming_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaving: two loads of the same pages, the second one begun while the first reads."""
    store, disk, pids = opened(folder, host=12)
    gate = Gate(disk, monkeypatch)
    thread = started(lambda: finish(store, begin(store, pids[:4])))
    gate.begun.wait()
    second = started(lambda: read_back(store, pids[2:6]))
    gate.opened.set()
    thread.join()
    second.join()
    assert torch.equal(read_back(store, pids[:6]), PAGES[:6])
    assert set(gate.reads.values()) == {1}, "a page was read twice"
    assert not store.host.leases.any()
    store.check_integrity()
    store.close()


def test_an_open_ticket_blocks_nobody(folder: Path) -> None:
    """The same thread may need, before it finishes a load, a page that it reserved."""
    store, _, pids = opened(folder, host=8)
    ticket = begin(store, pids[:4])
    assert torch.equal(read_back(store, pids[2:6]), PAGES[2:6])
    finish(store, ticket)
    assert torch.equal(read_back(store, pids[:4]), PAGES[:4])
    assert free_slots(store) + store.host.num_pages == 8
    store.check_integrity()
    store.close()


@pytest.mark.parametrize("gpu", [None, 4])
def test_threads_that_load_overlapping_pages_get_right_bytes(folder: Path, gpu: int | None) -> None:
    store, _, pids = opened(folder, host=16, gpu=gpu)
    wrong: list[object] = []

    def work(seed: int, prefetch: bool) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(40):
            some = rng.choice(COUNT, rng.integers(1, 9), replace=False)
            try:
                if prefetch:
                    ticket = begin(store, pids[some])
                    (end if turn % 4 == 0 else finish)(store, ticket)
                elif not torch.equal(read_back(store, pids[some]), PAGES[some]):
                    wrong.append(some)
                store.check_integrity()
            except Exception as error:  # joined threads tell nobody
                wrong.append(error)

    threads = [started(partial(work, seed, seed % 2 == 0)) for seed in range(4)]
    for thread in threads:
        thread.join()
    assert not wrong
    assert not store.host.leases.any()
    assert torch.equal(read_back(store, pids), PAGES)
    store.close()


def test_close_waits_for_a_read_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing LMDB under a reader would end the process."""
    store, disk, pids = opened(folder, host=8)
    gate = Gate(disk, monkeypatch)
    thread = started(lambda: finish(store, begin(store, pids[:4])))
    gate.begun.wait()
    closing = started(store.close)
    while not store._closed:
        pass
    gate.opened.set()
    thread.join()
    closing.join()
    assert store.is_resident(pids[:4]).all()
