"""Pages come in whole, under one id for each, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import LARGE, arena, disk_tier, read_back, store_on
from put_pages import PAGES, TEXT, put

from stratakv.storage import CapacityError, TieredStore


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


@pytest.mark.parametrize("gpu", [None, 2])
def test_an_arena_too_small_for_a_page_is_a_capacity_error(gpu: int | None) -> None:
    store = TieredStore(LARGE, 1, host=arena("host", LARGE, 0), gpu=arena("gpu", LARGE, gpu) if gpu else None)
    with pytest.raises(CapacityError, match="host"):
        put(store, 0, 1)


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


def test_a_pool_full_of_open_pages_names_its_cap() -> None:
    """Nothing ends by itself that could make room: whoever asks is told, and the host's cap would not help."""
    store = store_on(None, LARGE, host=4, gpu=2)
    first, _ = store.open_page(0), store.open_page(0)
    with pytest.raises(CapacityError, match=r"the gpu tier is full: 2 pages of 16384 bytes.*; raise gpu_gb$"):
        store.open_page(0)
    store.discard(first)
    assert store.open_page(0).slot == first.slot


def test_pages_that_are_here_are_shared_wherever_they_come_in_a_run() -> None:
    store = store_on(None, LARGE, host=5)
    middle = put(store, 1, 2)
    pids = put(store, 0, 5)
    assert pids[1:3].tolist() == middle.tolist()
    assert store.counters.pages_shared == 2
    assert torch.equal(read_back(store, pids), PAGES[:5])
    store.release(middle)
    assert store.host.num_pages == 5
    store.release(pids)
    assert store.host.num_pages == 0
    store.check_integrity()


@pytest.mark.parametrize("gpu", [None, 2])
def test_sealing_what_is_here_gives_its_slot_back(gpu: int | None) -> None:
    """Two sequences compute the same page at the same time: the second one gets the first one's."""
    store = store_on(None, LARGE, host=3, gpu=gpu)
    pages = [store.open_page(0), store.open_page(0)]
    pids = []
    for page in pages:
        page.bytes.copy_(PAGES[0])
        pids.append(store.seal(page, TEXT.chains[0], TEXT.tokens[0]))
    assert pids[0] == pids[1]
    assert [tier.num_filling for tier in (store.host, store.compute)] == [0, 0]
    assert (store.host.num_pages, store.counters.pages_shared) == (1, 1)
    assert torch.equal(read_back(store, np.array(pids[:1])), PAGES[:1])
    store.check_integrity()


def test_a_page_that_cannot_be_sealed_stays_open() -> None:
    store = store_on(None, LARGE, host=1, gpu=1)
    other = put(store, 5, 1)
    page = store.open_page(0)
    page.bytes.copy_(PAGES[0])
    with pytest.raises(CapacityError, match="the host tier is full: 1 pages"):
        store.seal(page, TEXT.chains[0], TEXT.tokens[0])
    store.release(other)
    pid = store.seal(page, TEXT.chains[0], TEXT.tokens[0])
    assert torch.equal(read_back(store, np.array([pid])), PAGES[:1])
    store.check_integrity()
