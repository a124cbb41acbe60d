"""The arena: slots, and which page gives way."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch
from children import Say, child
from kv_pages import SMALL, arena

from stratakv.storage import Arena
from stratakv.storage.memory.eviction import victims as choose
from stratakv.storage.memory.pinning import Pinner


def filled(num_slots: int, pages: list[tuple[int, int]]) -> Arena:
    """An arena whose slot i holds page i of `pages`: (layer, time of last use)."""
    pool = arena("host", SMALL, num_slots)
    for page, (layer, now) in enumerate(pages):
        pool.settle(pool.take(1, layer), np.array([page]), now)
    return pool


def victims(pool: Arena, count: int, *, layer: int = 0, num_layers: int = 2, force: bool = False) -> list[int]:
    everything = np.ones(pool.num_slots, dtype=bool)
    return choose(pool, count, everything, ~everything, layer, num_layers, force=force).tolist()


def test_slots_are_counted_under_the_cap() -> None:
    pool = Arena("host", 10_000, 512, torch.device("cpu"), reserved_bytes=3000)
    assert pool.num_slots == 13
    assert pool.data.nbytes + pool.reserved_bytes <= pool.cap_bytes
    assert pool.used_bytes == 3000
    pool.take(99, layer=0)
    assert (pool.num_free, pool.used_bytes) == (0, 3000 + 13 * 512)
    pool.check_integrity()


def test_take_settle_free() -> None:
    pool = arena("host", SMALL, 4)
    first = pool.take(3, layer=1)
    assert len(set(first.tolist())) == 3
    assert (pool.num_free, pool.num_pages) == (1, 0)
    pool.settle(first[:2], np.array([10, 11]), now=1)
    pool.check_integrity()
    assert (pool.num_free, pool.num_pages) == (1, 2)
    assert pool.evict(first[1:2]).tolist() == [11]
    pool.free(first[1:])
    pool.check_integrity()
    assert (pool.num_free, pool.num_pages) == (3, 1)
    assert set(pool.take(9, layer=0).tolist()) == set(range(4)) - {int(first[0])}
    assert len(pool.take(1, layer=0)) == 0


ARROWS = {
    ("FREE", "take"): "FILLING", ("FILLING", "settle"): "RESIDENT", ("FILLING", "free"): "FREE",
    ("RESIDENT", "lease"): "LEASED", ("RESIDENT", "evict"): "EVICTING", ("LEASED", "lease"): "LEASED",
    ("LEASED", "unlease"): "RESIDENT", ("EVICTING", "free"): "FREE",
}  # fmt: skip
PATHS = {
    "FREE": [], "FILLING": ["take"], "RESIDENT": ["take", "settle"], "LEASED": ["take", "settle", "lease"],
    "EVICTING": ["take", "settle", "evict"],
}  # fmt: skip


def step(pool: Arena, verb: str) -> None:
    """One transition of slot 0."""
    slot = np.array([0])
    if verb == "take":
        assert pool.take(1, 0).tolist() == [0]
    elif verb == "settle":
        pool.settle(slot, np.array([7]), 1)
    else:
        getattr(pool, verb)(slot)


def state_of(pool: Arena) -> str:
    return "LEASED" if pool.leases[0] else ("FREE", "FILLING", "RESIDENT", "EVICTING")[pool.state[0]]


@pytest.mark.parametrize("state", PATHS)
@pytest.mark.parametrize("verb", ["settle", "lease", "unlease", "evict", "free"])
def test_only_the_drawn_transitions_are_possible(state: str, verb: str) -> None:
    pool = arena("host", SMALL, 1)
    for before in PATHS[state]:
        step(pool, before)
    assert state_of(pool) == state
    if (state, verb) in ARROWS:
        step(pool, verb)
        assert state_of(pool) == ARROWS[state, verb]
        return
    with pytest.raises(AssertionError, match="host: slot 0 "):
        step(pool, verb)
    assert state_of(pool) == state, "a refused transition changed something"


def test_a_slot_is_taken_only_when_free() -> None:
    pool = filled(1, [(0, 1)])
    assert len(pool.take(1, 0)) == 0
    pool._free.give(np.array([0]))
    with pytest.raises(AssertionError, match=r"slot 0 \(RESIDENT\) cannot become FILLING: .* only on FREE"):
        pool.take(1, 0)


def test_taking_beyond_the_cap_is_refused() -> None:
    """Slots are laid out under the cap, so only a broken layout can get here."""
    pool = arena("host", SMALL, 2)
    pool.cap_bytes -= 1
    pool.take(1, 0)
    with pytest.raises(AssertionError, match="1 slots taken, now 1024 bytes > cap 1023"):
        pool.take(1, 0)


def test_every_lease_must_be_given_back() -> None:
    pool = filled(2, [(0, 1), (0, 2)])
    both = np.array([0, 1])
    with pool.leased(both), pool.leased(both[:1]):
        with pytest.raises(AssertionError, match="leased"):
            pool.evict(both)
        assert victims(pool, 2, force=True) == []
    assert victims(pool, 2, force=True) == [0, 1]


def test_check_integrity_finds_a_slot_lost() -> None:
    pool = filled(2, [(0, 1)])
    pool.state[0], pool.page[0] = 0, -1
    with pytest.raises(AssertionError, match="2 free by state, 1 by list"):
        pool.check_integrity()


def test_check_integrity_finds_a_page_with_two_slots() -> None:
    pool = filled(2, [(0, 1), (0, 1)])
    pool.page[1] = 0
    with pytest.raises(AssertionError, match="two slots"):
        pool.check_integrity()


def test_rows_are_parts_of_slots() -> None:
    pool = arena("host", SMALL, 3)
    pool.data[:] = torch.arange(3 * SMALL.page_bytes).view(3, -1).to(torch.uint8)
    rows = pool.rows(4)
    assert torch.equal(rows[2 * 4 + 1], pool.data[2].view(4, -1)[1])


def test_an_arena_without_slots_gives_none() -> None:
    pool = Arena("host", SMALL.page_bytes - 1, SMALL.page_bytes, torch.device("cpu"))
    assert len(pool.take(1, layer=0)) == 0
    assert victims(pool, 1, force=True) == []
    pool.check_integrity()


def test_victims_are_least_recently_used_first() -> None:
    pool = filled(4, [(0, 30), (0, 10), (0, 20), (0, 40)])
    assert victims(pool, 1, num_layers=1) == [1]
    assert victims(pool, 3, num_layers=1) == [1, 2, 0]
    pool.last_use[1] = 50
    assert victims(pool, 1, num_layers=1) == [2]


def test_only_resident_unleased_allowed_slots_are_victims() -> None:
    pool = filled(5, [(0, 1), (0, 2), (0, 3), (0, 4)])
    pool.take(1, layer=0)
    pool.leases[0] += 1
    allowed = np.array([True, False, True, True, True])
    assert choose(pool, 5, allowed, ~allowed, 0, 1, force=True).tolist() == [2, 3]


def test_a_layer_beyond_its_share_gives_first() -> None:
    """Two layers share six slots; layer 0 holds four, so its oldest is in excess, though layer 1's are older."""
    pool = filled(6, [(0, 10), (0, 11), (0, 12), (0, 13), (1, 1), (1, 2)])
    assert victims(pool, 1, layer=1) == [0]


def test_then_the_asking_layer_gives_its_own() -> None:
    """Reading layer after layer, the oldest page is the one needed next: others keep their share."""
    pool = filled(6, [(0, 10), (0, 11), (0, 12), (1, 1), (1, 2), (1, 3)])
    assert victims(pool, 2, layer=0) == [0, 1]
    assert victims(pool, 9, layer=0) == [0, 1, 2]


def test_other_layers_within_their_share_give_only_by_force() -> None:
    pool = filled(4, [(1, 1), (1, 2)])
    assert victims(pool, 2, layer=0) == []
    assert victims(pool, 2, layer=0, force=True) == [0, 1]


def test_layers_read_in_turn_keep_part_of_their_pages() -> None:
    """What plain least-recently-used order gets wrong: two layers of four pages each, over four slots."""
    pool = arena("host", SMALL, 4)
    now = 0
    for _ in range(10):
        for page in range(8):
            now += 1
            held = np.flatnonzero(pool.page == page)
            if len(held):
                pool.last_use[held] = now
                continue
            layer = page // 4
            slots = pool.take(1, layer)
            if not len(slots):
                gone = np.array(victims(pool, 1, layer=layer, force=True))
                pool.evict(gone)
                pool.free(gone)
                slots = pool.take(1, layer)
            pool.settle(slots, np.array([page]), now)
            pool.check_integrity()
    assert np.bincount(pool.layer[pool.state == 2], minlength=2).tolist() == [2, 2]


@pytest.mark.forks
def test_an_arena_is_not_counted_at_a_fork() -> None:
    """Reserved and untouched, it may be larger than the machine's memory, which a fork is not given twice."""
    size = psutil.virtual_memory().total + psutil.swap_memory().total
    pools = [Arena("host", size * 2 // 3, 1 << 20, torch.device("cpu")) for _ in range(3)]
    for pool in pools:
        pool.data[0] = 7
    with child(lambda say, wait: say("alive")) as fork:
        assert fork.hear() == "alive"
        assert fork.join() == 0
    assert all(int(pool.data[0].sum()) == 7 << 20 for pool in pools)


@pytest.mark.forks
def test_a_forked_child_that_gives_its_parents_arena_back_keeps_its_own_memory() -> None:
    """Where the arena's addresses were free in the child, its own maps took their place and went with the arena."""
    size = 1 << 24
    pools = [Arena("host", size, 1 << 12, torch.device("cpu")) for _ in range(4)]
    for pool in pools:
        pool.data[0] = 7

    def give_back(say: Say, wait: Callable[[], None]) -> None:
        say([int(pool.data[0].sum()) for pool in pools])
        own = [mmap.mmap(-1, size) for _ in range(8)]
        for number, mapped in enumerate(own):
            mapped[-1] = number
        pools.clear()
        gc.collect()
        say([mapped[-1] for mapped in own])

    with child(give_back) as fork:
        assert fork.hear() == [0, 0, 0, 0], "no bytes of the parent's"
        assert fork.hear() == list(range(8))
        assert fork.join() == 0
    assert all(int(pool.data[0].sum()) == 7 << 12 for pool in pools)


def test_memory_that_cannot_be_reserved_is_out_of_memory() -> None:
    with pytest.raises(MemoryError, match="bytes of host memory cannot be reserved"):
        Arena("host", 1 << 60, 1 << 20, torch.device("cpu"))


def test_a_copy_reads_no_two_pinned_ranges() -> None:
    pool = Arena("host", 5120, 512, torch.device("cpu"))
    pool.data.copy_(torch.arange(5120, dtype=torch.int32).view(10, 512) % 251)
    assert [len(piece) for piece in pool.pieces(1, 8)] == [4096]
    pool.pinner = Pinner(pool.data, Grants(), range_bytes=2000)
    pieces = list(pool.pieces(1, 8))
    assert [len(piece) for piece in pieces] == [2000 - 512, 2000, 4608 - 4000]
    assert torch.equal(torch.cat(pieces), pool.data[1:9].view(-1))
    assert list(pool.pieces(3, 0)) == []
    pool.close()


class Grants:
    """Pins whatever it is asked for."""

    def pin(self, address: int, num_bytes: int) -> bool:
        return True

    def unpin(self, address: int) -> None:
        """There is nothing to give back."""
