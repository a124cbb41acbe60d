"""Whole pages come from wherever they are, neighbours in one copy, and only empty slots of the pool are filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, lose_pages, read_back, store_on
from large_pages import adopted, write_pages
from put_pages import PAGES, put

from stratakv.storage import CorruptPageError, TieredStore
from stratakv.storage.transfer.lane import Lane
from stratakv.storage.transfer.sending import runs


def sent(store: TieredStore, pids: np.ndarray, lane: Lane | None = None) -> torch.Tensor:
    out = torch.zeros(len(pids), LARGE.page_bytes, dtype=torch.uint8)
    store.sending.send(pids, out, lane or Lane())
    return out


class Counting(Lane):
    def __init__(self) -> None:
        self.copies = 0

    def copy(self, out: torch.Tensor, source: torch.Tensor) -> None:
        self.copies += 1
        super().copy(out, source)


@pytest.mark.parametrize(
    ("slots", "found"),
    [
        ([], []),
        ([-1], []),
        ([0], [(0, 0, 1)]),
        ([-1, 0, 1, -1, -1, 7], [(1, 0, 2), (5, 7, 1)]),
        ([4, 5, 6, 2, 3, 9], [(0, 4, 3), (3, 2, 2), (5, 9, 1)]),
        ([3, 2, 1], [(0, 3, 1), (1, 2, 1), (2, 1, 1)]),
    ],
)
def test_neighbours_are_a_run(slots: list[int], found: list[tuple[int, int, int]]) -> None:
    assert list(runs(np.array(slots, dtype=np.int64))) == found


def test_pages_come_from_three_tiers(tmp_path: Path) -> None:
    """Six pages, two slots of host memory and two of the pool: some are read beside the host. Nothing is promoted."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=2, gpu=2)
    assert store.gpu is not None
    pids = put(store, 0, 6)
    store.flush()
    read_back(store, pids[3:5])
    near, before = store.gpu.page.copy(), store.counters.as_dict()
    order = np.random.default_rng(0).permutation(6)
    assert torch.equal(sent(store, pids[order]), PAGES[order])
    after = store.counters.as_dict()
    assert {name: after[name] - before[name] for name in ("gpu_reads", "disk_reads")} == {
        "gpu_reads": 2,
        "disk_reads": 4,
    }
    assert (store.gpu.page == near).all()
    store.check_integrity()
    store.close()


def test_neighbouring_slots_come_in_one_copy() -> None:
    store, lane = store_on(None, LARGE, host=8, gpu=1), Counting()
    pids = put(store, 0, 8)
    assert torch.equal(sent(store, pids, lane), PAGES[:8])
    assert (lane.copies, store.counters.host_to_gpu_bytes) == (1, 8 * LARGE.page_bytes)
    assert torch.equal(sent(store, pids[[6, 7, 0, 3]], lane), PAGES[[6, 7, 0, 3]])
    assert lane.copies == 1 + 3
    store.close()


def test_what_is_sent_and_kept_fills_the_layers_share_of_empty_slots() -> None:
    store = store_on(None, LARGE, host=8, gpu=3)
    assert store.gpu is not None
    pids = put(store, 0, 8)
    store.sending.keep(pids[4:6], sent(store, pids[4:6]))
    store.sending.keep(pids[:6], sent(store, pids[:6]))
    store.sending.keep(pids[6:], sent(store, pids[6:]))
    assert store.gpu.page.tolist() == pids[[4, 5, 0]].tolist()
    moved = store.counters.host_to_gpu_bytes
    assert torch.equal(read_back(store, pids[[4, 5, 0]]), PAGES[[4, 5, 0]])
    assert store.counters.host_to_gpu_bytes == moved
    store.check_integrity()
    store.close()


def test_another_layers_share_is_left_alone() -> None:
    store = store_on(None, LARGE, host=8, gpu=6)
    assert store.gpu is not None
    store.num_layers = store._residency.num_layers = 2
    pids = put(store, 0, 8)
    reserved = store.reserve(0, 1)
    store.sending.keep(pids, sent(store, pids))
    assert (store.gpu.page >= 0).sum() == 2
    store.unreserve(0, reserved)
    store.close()


def test_a_page_that_cannot_be_read_is_named_and_holds_nothing(tmp_path: Path) -> None:
    write_pages(tmp_path / "s", 4)
    store, pids = adopted(tmp_path / "s", 4, gpu=2)
    lose_pages(store, [pids[1]])
    with pytest.raises(CorruptPageError, match=r"1 stored page\(s\) cannot be used") as told:
        sent(store, pids[:2])
    assert told.value.pages == [pids[1]]
    assert not store.host.leases.any()
    assert torch.equal(sent(store, pids[[0, 2]]), PAGES[[0, 2]])
    store.check_integrity()
    store.close()
