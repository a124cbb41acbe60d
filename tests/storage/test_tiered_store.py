"""The tiered store, case by case: what the random runs reach too seldom or cannot reach."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, SMALL, arena, disk_tier, random_pages, read_back, store_on, text

from stratakv.storage import CapacityError, ClosedError, DiskTier, StorageFullError, TieredStore

TEXT = text(LARGE, 200)
PAGES = random_pages(LARGE, 200)
FULL = 1 << 20
"""The smallest disk tier: fewer than 64 large pages."""


def put(store: TieredStore, first: int, count: int) -> np.ndarray:
    run = slice(first, first + count)
    return store.put(0, TEXT.chains[run], TEXT.tokens[run], PAGES[run])


def test_a_refused_put_keeps_nothing() -> None:
    """Otherwise closing the conversation that was refused would never free its room."""
    store = store_on(None, LARGE, host=4)
    kept = put(store, 0, 1)
    with pytest.raises(CapacityError, match=r"host tier is full: 4 pages.*host_gb"):
        put(store, 0, 6)
    store.check_integrity()
    assert store.host.num_pages == 1
    store.release(kept)
    put(store, 10, 4)
    store.check_integrity()


def test_unreferenced_pages_stay_as_cache_while_the_disk_backs_them(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=8)
    store.release(put(store, 0, 4))
    assert store.host.num_pages == 4
    pids = put(store, 0, 4)
    assert store.counters.pages_shared == 4
    assert torch.equal(read_back(store, pids), PAGES[:4])
    store.check_integrity()
    store.close()


def test_a_page_evicted_everywhere_gives_its_id_back(tmp_path: Path) -> None:
    """Host drops a page first, the last reference goes, then the gpu needs its slot."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=2, gpu=3)
    pids = put(store, 0, 2)
    read_back(store, pids)
    others = put(store, 10, 2)
    store.flush()
    store.release(pids)
    read_back(store, others)
    store.check_integrity()
    read_back(store, put(store, 20, 2))
    store.check_integrity()
    store.close()


def test_the_table_grows_past_its_first_size() -> None:
    count = 2500
    many, pages = text(SMALL, count), random_pages(SMALL, count)
    store = store_on(None, host=count)
    runs = [slice(start, start + 300) for start in range(0, count, 300)]
    pids = np.concatenate([store.put(0, many.chains[run], many.tokens[run], pages[run]) for run in runs])
    assert torch.equal(read_back(store, pids), pages)
    store.release(pids)
    assert store.host.num_pages == 0
    store.check_integrity()


def test_parts_come_from_three_tiers_in_one_gather(tmp_path: Path) -> None:
    """Five pages, two slots per memory tier: some rows are read from gpu, host and beside the host."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=2, gpu=2)
    pids = put(store, 0, 5)
    read_back(store, pids[3:])
    rng = np.random.default_rng(0)
    pages, parts = rng.integers(0, 5, 64), rng.integers(0, 8, 64)
    out = torch.empty(64, LARGE.page_bytes // 8, dtype=torch.uint8)
    before = store.counters.as_dict()
    store.gather(pids, pages, parts, 8, out)
    after = store.counters.as_dict()
    assert torch.equal(out, PAGES[:5].view(5, 8, -1)[pages, parts])
    assert after["gpu_reads"] - before["gpu_reads"] == 2
    assert after["disk_reads"] - before["disk_reads"] == 3
    store.check_integrity()
    store.close()


def test_a_page_sealed_on_the_gpu_is_the_same_in_every_tier(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=3, gpu=1)
    page = store.open_page(0)
    page.bytes.copy_(PAGES[0])
    pids = np.array([store.seal(page, TEXT.chains[0], TEXT.tokens[0])])
    assert torch.equal(read_back(store, pids), PAGES[:1])
    store.discard(store.open_page(0))
    before = store.counters.host_reads
    assert torch.equal(read_back(store, pids), PAGES[:1])
    assert store.counters.host_reads == before + 1
    put(store, 10, 3)
    read_back(store, put(store, 20, 3))
    before = store.counters.disk_reads
    assert torch.equal(read_back(store, pids), PAGES[:1])
    assert store.counters.disk_reads == before + 1
    store.close()


def test_pages_differ_by_their_tokens_under_one_chain(tmp_path: Path) -> None:
    """A hash collision: the same name with other tokens is another page, and never read for the first."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=8)
    first = put(store, 0, 1)
    second = store.put(0, TEXT.chains[:1], TEXT.tokens[1:2], PAGES[1:2])
    assert first[0] != second[0]
    assert torch.equal(read_back(store, first), PAGES[:1])
    assert torch.equal(read_back(store, second), PAGES[1:2])
    store.close()


def test_a_page_replaced_twice_reads_as_the_last(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=4, gpu=2)
    pids = put(store, 0, 1)
    read_back(store, pids)
    store.replace(int(pids[0]), PAGES[100])
    store.replace(int(pids[0]), PAGES[101])
    assert torch.equal(read_back(store, pids), PAGES[101:102])
    put(store, 10, 20)
    assert not (store.host.page == pids[0]).any()
    store.release(pids)
    store.close()
    again = store_on(disk_tier(tmp_path / "s"), LARGE, host=4)
    assert torch.equal(read_back(again, again.adopt(0, TEXT.chains[:1], TEXT.tokens[:1])), PAGES[101:102])
    again.close()


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


def test_a_closed_store_refuses_work_and_still_lets_go(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=4)
    pids = put(store, 0, 2)
    page = store.open_page(0)
    store.close()
    store.close()
    out = torch.empty(1, LARGE.page_bytes, dtype=torch.uint8)
    none = np.zeros(1, dtype=np.int64)
    for call in (
        lambda: store.open_page(0),
        lambda: store.seal(page, TEXT.chains[9], TEXT.tokens[9]),
        lambda: put(store, 10, 8),
        lambda: store.replace(int(pids[0]), PAGES[0]),
        lambda: store.num_known(TEXT.chains[:9], [0]),
        lambda: store.adopt(0, TEXT.chains[:2], TEXT.tokens[:2]),
        lambda: store.gather(pids, none, none, 1, out),
    ):
        with pytest.raises(ClosedError):
            call()
    store.discard(page)
    store.release(pids)


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


@pytest.mark.parametrize("gpu", [None, 2])
def test_an_arena_too_small_for_a_page_is_a_capacity_error(gpu: int | None) -> None:
    store = TieredStore(LARGE, 1, host=arena("host", LARGE, 0), gpu=arena("gpu", LARGE, gpu) if gpu else None)
    with pytest.raises(CapacityError, match="host"):
        put(store, 0, 1)
