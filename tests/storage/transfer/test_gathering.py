"""The asked parts come from wherever their pages are, and no more than they moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, lose_pages, read_back, store_on
from large_pages import adopted, write_pages
from put_pages import PAGES, put

from stratakv.storage import CorruptPageError

PARTS = 8
"""Of a page, in every gather here."""
PART_BYTES = LARGE.page_bytes // PARTS


def nothing_yet(rows: int) -> torch.Tensor:
    """Room for parts, in which no byte is one of `PAGES` yet."""
    return torch.zeros(rows, PART_BYTES, dtype=torch.uint8)


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


def test_what_is_not_all_in_the_nearest_tier_is_not_begun_there() -> None:
    store = store_on(None, LARGE, host=3, gpu=2)
    pids = put(store, 0, 3)
    read_back(store, pids[:2])
    before, out = store.counters.as_dict(), nothing_yet(3)
    every, zero = np.arange(3), np.zeros(3, dtype=np.int64)
    with store._lock:
        assert not store._gatherer.gather_nearest(pids, every, zero, PARTS, out)
        assert (store.counters.as_dict(), out.any().item()) == (before, False)
        assert store._gatherer.gather_nearest(pids[:2], every[:2], zero[:2], PARTS, out[:2])
    assert torch.equal(out[:2], PAGES[:2, :PART_BYTES])
    assert store.counters.gpu_reads == before["gpu_reads"] + 2


def test_only_the_asked_parts_go_up_unless_pages_are_promoted() -> None:
    store = store_on(None, LARGE, host=3, gpu=2)
    assert store.gpu is not None
    pids, out = put(store, 0, 3), nothing_yet(4)
    pages, parts_of = np.array([0, 2, 2, 1]), np.array([7, 0, 3, 5])
    expected = PAGES[:3].view(3, PARTS, -1)[pages, parts_of]
    store.gather(pids, pages, parts_of, PARTS, out, promote=False)
    assert torch.equal(out, expected)
    assert (store.gpu.num_pages, store.counters.host_to_gpu_bytes) == (0, 4 * PART_BYTES)
    store.gather(pids[:1], pages[:1], parts_of[:1], PARTS, out[:1])
    assert (store.gpu.page[store.gpu.page >= 0].tolist(), store.counters.host_to_gpu_bytes) == (
        pids[:1].tolist(), 4 * PART_BYTES + LARGE.page_bytes,
    )  # fmt: skip
    store.check_integrity()


def test_what_nobody_waits_for_is_no_read(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=2)
    pids, out = put(store, 0, 4), nothing_yet(4)
    every, last, stalled = np.arange(4), np.full(4, PARTS - 1), store.counters.stall_s
    store.gather(pids, every, last, PARTS, out, ahead=True)
    assert torch.equal(out, PAGES[:4, -PART_BYTES:])
    assert (store.counters.reads, store.counters.stall_s) == (0, stalled)
    store.gather(pids, every, last, PARTS, out)
    assert store.counters.reads == 4
    assert store.counters.stall_s > stalled
    store.close()


def test_a_page_that_cannot_be_read_is_named_and_holds_nothing(tmp_path: Path) -> None:
    write_pages(tmp_path / "s", 4)
    store, pids = adopted(tmp_path / "s", 4, gpu=2)
    assert store.gpu is not None
    lose_pages(store, [pids[1]])
    with pytest.raises(CorruptPageError, match=r"1 stored page\(s\) cannot be used") as told:
        read_back(store, pids[:2])
    assert told.value.pages == [pids[1]]
    assert (store.gpu.num_pages, store.host.leases.any()) == (0, False)
    store.check_integrity()
    assert torch.equal(read_back(store, pids[[0, 2]]), PAGES[[0, 2]])
    store.close()
