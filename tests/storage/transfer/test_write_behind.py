"""Dirty pages get to disk, or stay whole in host memory while it takes none, and whoever waits is told why."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, read_back, store_on
from put_pages import PAGES, TEXT, put

from stratakv.storage import CapacityError, ClosedError, DiskTier, StorageFullError, TieredStore

FULL = 1 << 20
"""The smallest disk tier: fewer than 64 large pages."""


def is_closed(store: TieredStore) -> bool:
    try:
        store.num_known([], [0])
    except ClosedError:
        return True
    return False


def hold_writer(disk: DiskTier, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The writer thread stops before its next commit until the event is set."""
    released, write_pages = threading.Event(), disk.write_pages

    def held(records: list[tuple[bytes, bytes]]) -> None:
        released.wait()
        write_pages(records)

    monkeypatch.setattr(disk, "write_pages", held)
    return released


def test_eviction_never_takes_a_page_whose_new_bytes_are_not_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interleaving: replaced, then room is needed, and only then the writer gets to it."""
    disk = disk_tier(tmp_path / "s")
    store = store_on(disk, LARGE, host=4)
    pids = put(store, 0, 4)
    store.flush()
    released = hold_writer(disk, monkeypatch)
    store.replace(int(pids[0]), PAGES[100])
    put(store, 10, 3)
    assert store.is_resident(pids).tolist() == [True, False, False, False]
    released.set()
    put(store, 20, 4)
    assert not store.is_resident(pids).any()
    assert torch.equal(read_back(store, pids), torch.cat([PAGES[100:101], PAGES[1:4]]))
    store.check_integrity()
    store.close()


def test_close_writes_what_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaving: close is called while one page is being written and another one waits."""
    disk = disk_tier(tmp_path / "s")
    store = store_on(disk, LARGE, host=4)
    released = hold_writer(disk, monkeypatch)
    put(store, 0, 1)
    put(store, 1, 1)
    closing = threading.Thread(target=store.close)
    closing.start()
    while not is_closed(store):
        pass
    released.set()
    closing.join()
    again = store_on(disk_tier(tmp_path / "s"), LARGE, host=4)
    assert again.num_known(TEXT.chains[:3], [0]) == 2
    assert torch.equal(read_back(again, again.adopt(0, TEXT.chains[:2], TEXT.tokens[:2])), PAGES[:2])
    again.close()


# The disk fills up


def fill(store: TieredStore) -> tuple[np.ndarray, int]:
    """Put pages one by one until the disk refuses; returns their ids and how many."""
    pids: list[int] = []
    while not store.disk_error:
        pids.append(int(put(store, len(pids), 1)[0]))
        try:
            store.flush()
        except StorageFullError:
            break
    return np.array(pids), len(pids)


def test_pages_stay_in_host_memory_when_the_disk_is_full(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "s", cap_bytes=FULL)
    store = store_on(disk, LARGE, host=100)
    pids, count = fill(store)
    assert "raise disk_gb" in str(store.disk_error)
    assert 30 < disk.num_pages < count
    more = put(store, count, 5)
    everything = np.concatenate([pids, more])
    assert torch.equal(read_back(store, everything), PAGES[: count + 5])
    for tier in (store, disk):
        tier.check_integrity()
    with pytest.raises(CapacityError, match=r"disk tier .* is full"):
        put(store, count + 5, 95)
    assert torch.equal(read_back(store, everything), PAGES[: count + 5])
    store.check_integrity()
    store.close()


def test_a_full_disk_leaves_no_unreferenced_page_in_host_memory(tmp_path: Path) -> None:
    """Released while they waited to be written: nobody can use them, and nothing may evict them."""
    disk = disk_tier(tmp_path / "s", cap_bytes=FULL)
    store = store_on(disk, LARGE, host=100)
    store.release(put(store, 0, 100))
    with pytest.raises(StorageFullError):
        store.flush()
    store.check_integrity()
    assert store.host.num_pages == disk.num_pages, "what is left may be evicted"
    put(store, 100, 100)
    store.check_integrity()
    store.close()


def test_room_is_made_from_pages_nobody_refers_to(tmp_path: Path) -> None:
    """Released pages go, held ones and those of sessions stay; the write that found no room succeeds."""
    disk = disk_tier(tmp_path / "s", cap_bytes=FULL)
    store = store_on(disk, LARGE, host=60)
    of_session = set(TEXT.chains[:5])
    store.chains_to_keep = lambda: set(of_session)
    store.release(put(store, 0, 10))
    held = put(store, 10, 10)
    for first in range(20, 180, 10):
        assert store.num_known(TEXT.chains[first : first + 10], [0]) == 0  # each is a use of its own
        store.release(put(store, first, 10))
        store.flush()
    assert store.disk_error is None
    assert store.num_known(TEXT.chains[:5], [0]) == 5
    assert store.num_known(TEXT.chains[5:10], [0]) == 0
    assert torch.equal(read_back(store, held), PAGES[10:20])
    assert torch.equal(read_back(store, store.adopt(0, TEXT.chains[:5], TEXT.tokens[:5])), PAGES[:5])
    for tier in (store, disk):
        tier.check_integrity()
    store.close()


def test_a_swept_page_is_no_longer_known(tmp_path: Path) -> None:
    """It was still in host memory, marked as stored: shared again and evicted, it would have been lost."""
    disk = disk_tier(tmp_path / "s", cap_bytes=FULL)
    store = store_on(disk, LARGE, host=100)
    store.chains_to_keep = set
    store.release(put(store, 0, 25))
    store.flush()
    rest = put(store, 40, 25)
    store.flush()
    assert not any(disk.contains(bytes(2) + chain) for chain in TEXT.chains[20:25])
    again = put(store, 15, 10)
    put(store, 100, 80)
    assert torch.equal(read_back(store, again), PAGES[15:25])
    assert torch.equal(read_back(store, rest), PAGES[40:65])
    store.close()


def test_an_error_on_the_writer_thread_reaches_the_caller(tmp_path: Path) -> None:
    """Else `flush` would wait for a thread that is gone."""

    def broken() -> set[bytes]:
        raise RuntimeError("sessions cannot be read")

    store = store_on(disk_tier(tmp_path / "s", cap_bytes=FULL), LARGE, host=100)
    store.chains_to_keep = broken
    store.release(put(store, 90, 5))
    store.flush()
    pids = put(store, 0, 80)
    with pytest.raises(StorageFullError, match="sessions cannot be read"):
        store.flush()
    assert torch.equal(read_back(store, pids), PAGES[:80])
    store.check_integrity()
    store.close()
