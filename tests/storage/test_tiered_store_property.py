"""The tiered store against a plain dict, over random runs of every operation it has."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kv_pages import SMALL, arena, delete_pages, disk_tier, read_back, text
from tickets import begin, end, finish

from stratakv.storage import CapacityError, OpenPage, TieredStore, page_key
from stratakv.storage.transfer.loading import Ticket

LAYERS = 3
TEXTS = [text(SMALL, 5, seed=seed) for seed in range(2)]
PARTS = (1, 2 * SMALL.num_heads, 2 * SMALL.num_heads * SMALL.page_size)
"""Whole pages, one head's keys or values, one token of them."""

layers = st.integers(0, LAYERS - 1)
texts = st.integers(0, len(TEXTS) - 1)
pages = st.integers(0, len(TEXTS[0].chains) - 1)
seeds = st.integers(0, 2**32 - 1)

Name = tuple[int, bytes]
"""Layer and chain."""


class StoreMachine(RuleBasedStateMachine):
    """`book` is the dict: what every page ever put must read as. `held` counts our references.

    `durable` are the pages that a flush has promised. `tickets` are loads begun and not ended.
    `unflushed` and `unclosed` count calls that brought pages in: flushing and reopening after every
    other step would leave the tiers forever empty.
    """

    has_gpu = True
    has_disk = True

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.book: dict[Name, np.ndarray] = {}
        self.held: Counter[Name] = Counter()
        self.pids: dict[Name, int] = {}
        self.open: OpenPage | None = None
        self.tickets: list[tuple[Ticket, list[Name]]] = []
        self.durable: set[Name] = set()
        self.drawn = 0
        self.unflushed = 0
        self.unclosed = 0

    @initialize(host_slots=st.integers(4, 8), gpu_slots=st.integers(3, 5), codec=st.sampled_from(["raw", "zstd"]))
    def create(self, host_slots: int, gpu_slots: int, codec: str) -> None:
        self.shape = host_slots, gpu_slots, codec
        self.start()

    def start(self) -> None:
        host_slots, gpu_slots, codec = self.shape
        self.store = TieredStore(
            SMALL,
            LAYERS,
            host=arena("host", SMALL, host_slots),
            gpu=arena("gpu", SMALL, gpu_slots) if self.has_gpu else None,
            disk=disk_tier(Path(self.folder.name), cap_bytes=4 << 20) if self.has_disk else None,
            codec=codec,
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.folder.cleanup()

    # Pages in

    def content(self, name: Name) -> np.ndarray:
        """The bytes of a page: drawn once, for a name stands for one content."""
        if name not in self.book:
            rng = np.random.default_rng(self.drawn)
            self.drawn += 1
            self.book[name] = rng.integers(0, 256, SMALL.page_bytes, dtype=np.uint8)
        return self.book[name]

    def hold(self, name: Name, pid: int) -> None:
        if self.held[name]:
            assert pid == self.pids[name], "two ids for one page"
        assert all(other == name for other, known in self.pids.items() if known == pid), "two pages under one id"
        self.held[name] += 1
        self.pids[name] = pid

    def allow_full(self) -> None:
        assert self.store.disk is None, "a tier with a disk below it was full"

    @rule(layer=layers, of=texts, first=pages, count=st.integers(1, 5))
    def put(self, layer: int, of: int, first: int, count: int) -> None:
        chains = TEXTS[of].chains[first : first + count]
        names = [(layer, chain) for chain in chains]
        data = torch.from_numpy(np.stack([self.content(name) for name in names]))
        try:
            pids = self.store.put(layer, chains, TEXTS[of].tokens[first : first + count], data)
        except CapacityError:
            self.allow_full()
            return
        self.unflushed += 1
        self.unclosed += 1
        for name, pid in zip(names, pids.tolist(), strict=True):
            self.hold(name, pid)

    @precondition(lambda self: self.open is None)
    @rule(layer=layers)
    def open_page(self, layer: int) -> None:
        try:
            self.open = self.store.open_page(layer)
        except CapacityError:
            self.allow_full()

    @precondition(lambda self: self.open is not None)
    @rule(of=texts, page=pages)
    def seal(self, of: int, page: int) -> None:
        assert self.open is not None
        name = (self.open.layer, TEXTS[of].chains[page])
        self.open.bytes.copy_(torch.from_numpy(self.content(name)))
        try:
            pid = self.store.seal(self.open, name[1], TEXTS[of].tokens[page])
        except CapacityError:
            self.allow_full()
            return
        self.unflushed += 1
        self.unclosed += 1
        self.open = None
        self.hold(name, pid)

    @precondition(lambda self: self.open is not None)
    @rule(byte=st.integers(0, 255))
    def discard(self, byte: int) -> None:
        """An open page is ours alone: what was written to it changes nothing else."""
        assert self.open is not None
        self.open.bytes.fill_(byte)
        self.store.discard(self.open)
        self.open = None

    @precondition(lambda self: self.held)
    @rule(seed=seeds)
    def replace(self, seed: int) -> None:
        name = sorted(self.held)[seed % len(self.held)]
        try:
            self.store.replace(self.pids[name], torch.from_numpy(self.content(name)))
        except CapacityError:
            self.allow_full()
            return
        self.durable.discard(name)
        self.unflushed += 1

    # References

    def some_held(self, seed: int) -> list[Name]:
        """A random sample of our references, a name as often as we hold it."""
        references = sorted(self.held.elements())
        rng = np.random.default_rng(seed)
        count = rng.integers(1, len(references) + 1)
        return [references[i] for i in rng.choice(len(references), count, replace=False)]

    @precondition(lambda self: self.held)
    @rule(seed=seeds)
    def retain(self, seed: int) -> None:
        names = self.some_held(seed)
        self.store.retain(np.array([self.pids[name] for name in names]))
        self.held.update(names)

    @precondition(lambda self: self.held)
    @rule(seed=seeds)
    def release(self, seed: int) -> None:
        names = self.some_held(seed)
        self.store.release(np.array([self.pids[name] for name in names]))
        self.held -= Counter(names)
        self.pids = {name: pid for name, pid in self.pids.items() if name in self.held}

    @rule(of=texts, wanted=st.sets(layers, min_size=1), most=st.integers(0, 5))
    def adopt(self, of: int, wanted: set[int], most: int) -> None:
        """Known is exactly what was ever put; without a disk, what is still held."""
        chains = TEXTS[of].chains
        kept = set(self.book) if self.store.disk is not None else self.in_use()
        expected = 0
        while expected < len(chains) and all((layer, chains[expected]) in kept for layer in wanted):
            expected += 1
        assert self.store.num_known(chains, sorted(wanted)) == expected
        count = min(expected, most)
        for layer in wanted:
            pids = self.store.adopt(layer, chains[:count], TEXTS[of].tokens[:count])
            for chain, pid in zip(chains[:count], pids.tolist(), strict=True):
                self.hold((layer, chain), pid)

    # Pages out

    @precondition(lambda self: self.held)
    @rule(parts=st.sampled_from(PARTS), num_rows=st.integers(1, 40), seed=seeds)
    def gather(self, parts: int, num_rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        names = sorted(set(self.some_held(seed)))
        rng.shuffle(names)
        of_page = rng.integers(0, len(names), num_rows)
        of_part = rng.integers(0, parts, num_rows)
        out = torch.empty(num_rows, SMALL.page_bytes // parts // SMALL.item_bytes, dtype=torch.float32)
        reads = self.store.counters.reads
        self.store.gather(np.array([self.pids[name] for name in names]), of_page, of_part, parts, out)
        expected = [
            self.book[names[page]].reshape(parts, -1)[part] for page, part in zip(of_page, of_part, strict=True)
        ]
        np.testing.assert_array_equal(out.view(torch.uint8).numpy(), np.stack(expected))
        assert self.store.counters.reads == reads + len(names)

    @precondition(lambda self: self.held)
    @rule()
    def read_everything(self) -> None:
        """More than the memory tiers hold, as a rule."""
        names = sorted(self.held)
        found = read_back(self.store, np.array([self.pids[name] for name in names]))
        np.testing.assert_array_equal(found.numpy(), np.stack([self.book[name] for name in names]))

    # Loads in two phases

    def in_use(self) -> set[Name]:
        """Held by us or by a ticket."""
        return set(self.held).union(*(names for _, names in self.tickets))

    @precondition(lambda self: self.held and len(self.tickets) < 2)
    @rule(seed=seeds)
    def begin_load(self, seed: int) -> None:
        """Of few pages at a time: a slot for the open page and one to work with must be left in every tier."""
        room = min(self.shape[:2]) - 2 - sum(len(names) for _, names in self.tickets)
        names = sorted(set(self.some_held(seed)))[: max(room, 0)]
        self.tickets.append((begin(self.store, np.array([self.pids[name] for name in names], dtype=int)), names))

    @precondition(lambda self: self.tickets)
    @rule(seed=seeds)
    def finish_load(self, seed: int) -> None:
        """What was asked is in memory, but for what there was no room for."""
        ticket, _ = self.tickets.pop(seed % len(self.tickets))
        pids = np.setdiff1d(ticket.pids, ticket.beyond)
        still_held = pids[self.store._table.refs[pids] > 1]
        finish(self.store, ticket)
        assert self.store.is_resident(still_held).all()

    @precondition(lambda self: self.tickets)
    @rule(seed=seeds)
    def end_load(self, seed: int) -> None:
        ticket, _ = self.tickets.pop(seed % len(self.tickets))
        end(self.store, ticket)

    # Life of the store

    @precondition(lambda self: self.unflushed >= 2)
    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.unflushed = 0
        self.durable = set(self.book)
        if self.store.disk is not None:
            for layer, chain in self.book:
                assert self.store.disk.contains(page_key(layer, chain)), "flushed, but not on disk"

    @precondition(lambda self: self.unclosed >= 6)
    @rule()
    def reopen(self) -> None:
        """Close writes what is queued; page ids and references end with the process."""
        self.end()
        self.durable = set(self.book)
        if self.store.disk is None:
            self.book.clear()
        self.start()

    @precondition(lambda self: self.unclosed >= 3 and self.store.disk is not None)
    @rule()
    def crash(self) -> None:
        """The writer commits nothing more. What a flush promised survives; the rest is whole or gone, and here it goes:
        how far the writer came must not decide what this machine does next."""
        disk = self.store.disk
        assert disk is not None

        with patch.object(disk, "write_pages", side_effect=RuntimeError("the process is gone")):
            self.end()
        self.start()
        assert self.store.disk is not None
        on_disk = {name for name in self.book if self.store.disk.contains(page_key(*name))}
        assert on_disk >= self.durable, "a flushed page did not survive"
        for layer, chain in sorted(on_disk):
            of = next(text for text in TEXTS if chain in text.chains)
            pids = self.store.adopt(layer, [chain], of.tokens[of.chains.index(chain)][None])
            np.testing.assert_array_equal(read_back(self.store, pids).numpy()[0], self.book[layer, chain])
            self.store.release(pids)
        delete_pages(self.store.disk, [page_key(*name) for name in on_disk - self.durable])
        self.store.close()
        self.start()
        self.book = {name: self.book[name] for name in self.durable}

    def end(self) -> None:
        """Page ids, references and tickets end with the process."""
        self.store.close()
        for ticket, _ in self.tickets:
            end(self.store, ticket)
        assert not self.store.host.leases.any()
        self.tickets.clear()
        self.held.clear()
        self.pids.clear()
        self.open = None
        self.unflushed = self.unclosed = 0

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.check_integrity()
        for tier in (self.store.gpu, self.store.host):
            if tier is not None:
                assert tier.data.nbytes + tier.reserved_bytes <= tier.cap_bytes
                assert tier.used_bytes <= tier.cap_bytes
        if self.store.disk is not None:
            self.store.disk.check_integrity()
            assert self.store.disk.used_bytes <= self.store.disk.cap_bytes
        assert self.store.disk_error is None


class HostAndDisk(StoreMachine):
    has_gpu = False


class GpuAndHost(StoreMachine):
    has_disk = False


class HostOnly(StoreMachine):
    has_gpu = False
    has_disk = False


@pytest.mark.parametrize("machine", [StoreMachine, HostAndDisk, GpuAndHost, HostOnly])
def test_the_store_is_a_dict(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40 if machine.has_disk else 20,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
