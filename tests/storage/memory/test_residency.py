"""Slots, ids and references change together: a page is forgotten when nobody needs it, and not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kv_pages import LARGE, SMALL, arena, disk_tier, read_back, store_on, text
from put_pages import put

from stratakv.storage import Arena, Counters
from stratakv.storage.memory.page_table import NO_SLOT, PageTable
from stratakv.storage.memory.residency import Residency

TEXT = text(SMALL, 8)


def memory_of(host: int, gpu: int | None = None, *, num_layers: int = 1) -> Residency:
    pool = arena("gpu", SMALL, gpu) if gpu else None
    return Residency(arena("host", SMALL, host), pool, PageTable(SMALL.page_size), num_layers, Counters())


def bring(memory: Residency, tier: Arena, pids: np.ndarray) -> None:
    """Put copies of these pages into a tier that has room for them."""
    memory.clock += 1
    memory.settle(tier, memory.take_or_evict(tier, len(pids), 0), pids)


def with_pages(memory: Residency, count: int, *, stored: bool) -> np.ndarray:
    """New pages in host memory, one younger than the other; each has one reference."""
    pids = np.array([memory.table.add(0, TEXT.chains[i], TEXT.tokens[i]) for i in range(count)])
    for pid in pids:
        bring(memory, memory.host, np.array([pid]))
    memory.table.stored[pids] = stored
    memory.check_integrity()
    return pids


def is_known(memory: Residency, pids: np.ndarray) -> list[bool]:
    return np.isin(pids, memory.table.live()).tolist()


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


def test_host_memory_gives_up_only_what_is_on_disk() -> None:
    memory = memory_of(4)
    pids = with_pages(memory, 4, stored=True)
    memory.table.stored[pids[[0, 2]]] = False
    assert memory.num_unstored() == 2
    assert len(memory.take_or_evict(memory.host, 3, 0, force=True)) == 2
    assert memory.table.is_resident(pids).tolist() == [True, False, True, False]
    memory.check_integrity()


def test_copies_in_the_pool_are_always_spare() -> None:
    memory = memory_of(3, gpu=2)
    assert memory.gpu is not None
    pids = with_pages(memory, 3, stored=False)
    bring(memory, memory.gpu, pids[:1])
    bring(memory, memory.gpu, pids[1:2])
    bring(memory, memory.gpu, pids[2:])
    assert (memory.table.gpu_slot[pids] >= 0).tolist() == [False, True, True]
    assert memory.table.is_resident(pids).all()
    memory.check_integrity()


@pytest.mark.parametrize(
    ("stored", "keep_unstored", "kept_out", "stays"),
    [(True, False, False, True), (False, True, False, True), (False, False, False, False), (False, True, True, False)],
)
def test_a_page_without_references_stays_where_something_can_bring_it_back(
    stored: bool, keep_unstored: bool, kept_out: bool, stays: bool
) -> None:
    memory = memory_of(2)
    pids = with_pages(memory, 2, stored=stored)
    memory.table.refs[pids[1]] += 1
    memory.table.kept_out[pids] = kept_out
    memory.release(pids, keep_unstored=keep_unstored)
    assert is_known(memory, pids) == [stays, True]
    memory.release(pids[1:], keep_unstored=keep_unstored)
    assert is_known(memory, pids) == [stays, stays]
    assert memory.host.num_pages == 2 * stays
    with pytest.raises(AssertionError, match="released twice"):
        memory.release(pids, keep_unstored=keep_unstored)


def test_what_will_not_be_written_goes_unless_it_is_held_or_was_just_counted() -> None:
    """Whoever counted it is about to adopt it."""
    memory = memory_of(4)
    pids = with_pages(memory, 4, stored=False)
    memory.table.refs[pids[1:]] = 0
    memory.table.stored[pids[2]] = True
    memory.counted = {TEXT.chains[3]}
    memory.forget_unbacked()
    assert is_known(memory, pids) == [True, False, True, True]
    memory.counted = set()
    memory.forget_unbacked(pids[2:])
    assert is_known(memory, pids) == [True, False, True, False]
    memory.check_integrity()


def test_reserved_slots_leave_a_layer_a_quarter_of_its_share() -> None:
    memory = memory_of(2, gpu=16, num_layers=2)
    first, second = memory.reserve(0, 4), memory.reserve(0, 99)
    assert (len(first), len(second), len(memory.reserve(0, 1))) == (4, 2, 0)
    assert len(memory.reserve(1, 6)) == 6
    memory.unreserve(0, first)
    assert len(memory.reserve(0, 99)) == 4
    assert memory.reserved == {0: 6, 1: 6}
    assert len(memory_of(2).reserve(0, 1)) == 0, "there is no pool"


def test_what_came_ahead_is_useful_once_or_wasted() -> None:
    memory = memory_of(3)
    pids = with_pages(memory, 3, stored=True)
    memory.table.ahead[pids[:2]] = True
    memory.note_read(pids[1:])
    memory.note_read(pids[1:])
    assert memory.counters.useful_prefetched_bytes == SMALL.page_bytes
    memory.take_or_evict(memory.host, 3, 0)
    assert memory.counters.wasted_prefetched_bytes == SMALL.page_bytes


BREAKS: dict[str, Callable[[Residency, int], None]] = {
    "host: slots and table differ": lambda memory, pid: memory.table.host_slot.__setitem__(pid, 1),
    "host: a slot holds a forgotten page": lambda memory, pid: memory.table.host_slot.__setitem__(pid, NO_SLOT),
    "negative references": lambda memory, pid: memory.table.refs.__setitem__(pid, -1),
    "keys and ids differ": lambda memory, pid: memory.table.pids.__setitem__(b"another", pid),
}


@pytest.mark.parametrize("said", BREAKS)
def test_check_integrity_says_what_is_broken(said: str) -> None:
    memory = memory_of(2)
    pid = int(with_pages(memory, 1, stored=True)[0])
    BREAKS[said](memory, pid)
    with pytest.raises(AssertionError, match=said):
        memory.check_integrity()


def test_check_integrity_finds_pages_that_are_nowhere() -> None:
    memory = memory_of(2)
    pid = memory.table.add(0, TEXT.chains[0], TEXT.tokens[0])
    with pytest.raises(AssertionError, match="a referenced page is nowhere"):
        memory.check_integrity()
    memory.table.refs[pid] = 0
    with pytest.raises(AssertionError, match="a page nobody can use has an id"):
        memory.check_integrity()
