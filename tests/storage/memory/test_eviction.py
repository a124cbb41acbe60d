"""Eviction policies: what holds for every arena, whatever is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pages import SMALL, arena, read_back, store_on, text

from stratakv.storage import Arena, TieredStore
from stratakv.storage.memory.eviction import POLICIES, make_policy, victims

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
        self.scores = rng.integers(0, 4, num_slots).astype(float)
        self.layer = int(rng.integers(0, LAYERS))

    def victims(self, policy: str, count: int, *, force: bool) -> list[int]:
        return victims(
            self.pool, count, self.evictable, self.layer, LAYERS,
            force=force, policy=make_policy(policy), scores=self.scores,
        ).tolist()  # fmt: skip

    def worth(self, policy: str, slot: int) -> tuple[float, float]:
        """What the policy sorts by, the lowest first."""
        score = self.scores[self.pool.page[slot]] if policy == "scored" else 0.0
        return float(score), float(self.pool.last_use[slot])

    def expected(self, policy: str, force: bool) -> list[int]:
        """The order, slot by slot: a plain rendering of the rules in `eviction`."""
        may_go = [s for s in range(self.pool.num_slots) if self.pool.state[s] == 2
                  and not self.pool.leases[s] and self.evictable[s]]  # fmt: skip
        by_worth = sorted(may_go, key=lambda slot: self.worth(policy, slot))
        share = self.pool.num_slots // LAYERS
        excess = [int(np.sum((self.pool.state == 2) & (self.pool.layer == i))) - share for i in range(LAYERS)]
        first = []
        for slot in by_worth:
            if excess[self.pool.layer[slot]] > 0:
                excess[self.pool.layer[slot]] -= 1
                first.append(slot)
        own = [slot for slot in by_worth if slot not in first and self.pool.layer[slot] == self.layer]
        rest = [slot for slot in by_worth if slot not in first and slot not in own]
        return first + own + (rest if force else [])


cases = st.builds(Case, st.integers(0, 2**32 - 1), st.integers(1, 24))


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases, force=st.booleans(), count=st.integers(0, 30))
def test_the_order_is_the_one_written_down(policy: str, case: Case, force: bool, count: int) -> None:
    assert case.victims(policy, count, force=force) == case.expected(policy, force)[:count]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases, force=st.booleans())
def test_equal_scores_are_plain_lru(case: Case, force: bool) -> None:
    case.scores[:] = 1.0
    assert case.victims("scored", 99, force=force) == case.victims("lru", 99, force=force)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eviction is one of \['lru', 'scored'\], not 'fifo'"):
        TieredStore(SMALL, 1, host=arena("host", SMALL, 4), eviction="fifo")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_store_evicts_by_its_policy(policy: str) -> None:
    """Page 0 is the oldest, page 2 the least wanted. Without a disk, gpu copies are what can go."""
    of = text(SMALL, 4)
    store = TieredStore(SMALL, 1, host=arena("host", SMALL, 8), gpu=arena("gpu", SMALL, 3), eviction=policy)
    pids = store.put(0, of.chains, of.tokens, torch.zeros(4, SMALL.page_bytes, dtype=torch.uint8))
    for pid in pids[:3]:
        read_back(store, np.array([pid]))
    store.note_scores(pids[:3], np.array([3.0, 2.0, 1.0]))
    read_back(store, pids[3:])
    assert store.gpu is not None
    gone = pids[0] if policy == "lru" else pids[2]
    assert sorted(store.gpu.page.tolist()) == sorted(set(pids.tolist()) - {int(gone)})
    store.check_integrity()


def test_a_new_page_has_no_score_of_an_older_one_under_its_id() -> None:
    of = text(SMALL, 2)
    store = store_on(None, host=4)
    page = torch.zeros(1, SMALL.page_bytes, dtype=torch.uint8)
    first = store.put(0, of.chains[:1], of.tokens[:1], page)
    store.note_scores(first, np.array([9.0]))
    store.release(first)
    second = store.put(0, of.chains[1:], of.tokens[1:], page)
    assert second[0] == first[0]
    assert store._table.score[second[0]] == 0.0
