"""Which page gives way: what holds for every arena, whatever is in it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pages import SMALL, arena, read_back, text

from stratakv.storage import Arena, TieredStore
from stratakv.storage.memory.eviction import victims

LAYERS = 3


class Case:
    """A random arena: pages in some slots, some leased, some not to go."""

    def __init__(self, seed: int, num_slots: int) -> None:
        rng = np.random.default_rng(seed)
        self.pool: Arena = arena("host", SMALL, num_slots)
        slots = self.pool.take(num_slots, 0)
        self.pool.layer[slots] = rng.integers(0, LAYERS, num_slots)
        filled = slots[rng.random(num_slots) < 0.9]
        self.pool.settle(filled, rng.permutation(num_slots)[: len(filled)], 0)
        self.pool.last_use[:] = rng.permutation(num_slots)
        self.pool.lease(filled[rng.random(len(filled)) < 0.1])
        self.evictable = rng.random(num_slots) < 0.8
        self.layer = int(rng.integers(0, LAYERS))
        self.cold = rng.random(num_slots) < 0.4

    def victims(self, count: int, *, force: bool) -> list[int]:
        return victims(self.pool, count, self.evictable, self.cold, self.layer, LAYERS, force=force).tolist()

    def expected(self, force: bool) -> list[int]:
        """The order, slot by slot: a plain rendering of the rules in `eviction`."""
        may_go = [s for s in range(self.pool.num_slots) if self.pool.state[s] == 2
                  and not self.pool.leases[s] and self.evictable[s]]  # fmt: skip
        by_age = sorted(may_go, key=lambda slot: (not self.cold[slot], self.pool.last_use[slot]))
        share = self.pool.num_slots // LAYERS
        excess = [int(np.sum((self.pool.state == 2) & (self.pool.layer == i))) - share for i in range(LAYERS)]
        first = []
        for slot in by_age:
            if excess[self.pool.layer[slot]] > 0:
                excess[self.pool.layer[slot]] -= 1
                first.append(slot)
        own = [slot for slot in by_age if slot not in first and self.pool.layer[slot] == self.layer]
        rest = [slot for slot in by_age if slot not in first and slot not in own]
        return first + own + (rest if force else [])


cases = st.builds(Case, st.integers(0, 2**32 - 1), st.integers(1, 24))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases, force=st.booleans(), count=st.integers(0, 30))
def test_the_order_is_the_one_written_down(case: Case, force: bool, count: int) -> None:
    assert case.victims(count, force=force) == case.expected(force)[:count]


def test_the_store_evicts_the_oldest_page() -> None:
    """Page 0 is the oldest. Without a disk, gpu copies are what can go."""
    of = text(SMALL, 4)
    store = TieredStore(SMALL, 1, host=arena("host", SMALL, 8), gpu=arena("gpu", SMALL, 3))
    pids = store.put(0, of.chains, of.tokens, torch.zeros(4, SMALL.page_bytes, dtype=torch.uint8))
    for pid in pids[:3]:
        read_back(store, np.array([pid]))
    read_back(store, pids[3:])
    assert store.gpu is not None
    assert sorted(store.gpu.page.tolist()) == sorted(set(pids.tolist()) - {int(pids[0])})
    store.check_integrity()


def test_the_store_evicts_cold_pages_first() -> None:
    """Of four pages the newest is cold: it goes before the oldest, and no longer once it is ranked anew."""
    of = text(SMALL, 6)
    store = TieredStore(SMALL, 1, host=arena("host", SMALL, 8), gpu=arena("gpu", SMALL, 4))
    pids = store.put(0, of.chains, of.tokens, torch.zeros(6, SMALL.page_bytes, dtype=torch.uint8))
    assert store.gpu is not None
    for pid in pids[:4]:
        read_back(store, np.array([pid]))
    store.rank(pids[:4], np.array([False, False, False, True]))
    read_back(store, pids[4:5])
    assert sorted(store.gpu.page.tolist()) == [*pids[[0, 1, 2, 4]].tolist()]
    store.rank(pids[:1], np.array([False]))
    read_back(store, pids[5:])
    assert sorted(store.gpu.page.tolist()) == [*pids[[1, 2, 4, 5]].tolist()]
