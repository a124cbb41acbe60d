"""The tiered store, case by case: what the random runs reach too seldom or cannot reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, SMALL, disk_tier, random_pages, read_back, store_on, text
from put_pages import PAGES, TEXT, put

from stratakv.storage import ClosedError


def test_unreferenced_pages_stay_as_cache_while_the_disk_backs_them(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=8)
    store.release(put(store, 0, 4))
    assert store.host.num_pages == 4
    pids = put(store, 0, 4)
    assert store.counters.pages_shared == 4
    assert torch.equal(read_back(store, pids), PAGES[:4])
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
