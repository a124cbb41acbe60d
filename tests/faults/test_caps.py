"""Tiers of a few pages under a long random workload: never a byte above a cap, and every answer right.

What is asked of the store is drawn with a fixed seed; what it moves when depends on its writer thread as well.
Sizes are taken from outside after every operation: the file's by `os.stat`, the arenas' from the memory behind
their tensors. Beside the store goes a plain dict of what every page must read as.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from faults import num_faults
from kv_pages import LARGE, disk_tier

from stratakv.storage import (
    ROOT,
    Arena,
    CapacityError,
    DiskTier,
    OpenPage,
    StorageFullError,
    TieredStore,
    next_chain,
)

OPERATIONS = num_faults(default=3000, share=200)
LAYERS = 2
NUM_TEXTS, TEXT_PAGES, SHARED_PAGES = 20, 9, 4
"""Texts come in pairs that begin with the same pages."""
PAGE = LARGE.page_bytes
PARTS = (1, 2 * LARGE.num_heads, 2 * LARGE.num_heads * LARGE.page_size)
RESERVED = 1000
HOST_CAP, GPU_CAP, DISK_CAP = 7 * PAGE + 4321, 4 * PAGE + RESERVED + 99, (3 << 19) + 1234
"""Not multiples of anything. All texts together have some three times as many bytes."""
MOST_SEQUENCES, MOST_SESSIONS, LARGEST_SESSION, LARGEST_STATE = 20, 5, 50_000, 60_000
MOST_ABOVE_LIVE, MOST_COMPACTED = 1.3, 1.05
"""Times the live bytes: on average, since what a session frees stays in the file until it is used again."""
Name = tuple[int, bytes]
"""Layer and chain."""


@dataclass
class Words:
    chains: list[bytes]
    tokens: np.ndarray


@dataclass
class Sequence:
    """The first pages of a text: one list of page ids a layer."""

    text: int
    pids: list[list[int]]

    def __len__(self) -> int:
        return len(self.pids[0])


class Book:
    """All texts, and the dict: the bytes of every page there can be. Some compress well, some not at all."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.texts: list[Words] = []
        self.content: dict[Name, np.ndarray] = {}
        for number in range(NUM_TEXTS):
            tokens = rng.integers(0, 50_000, (TEXT_PAGES, LARGE.page_size)).astype(np.uint32)
            if number % 2:
                tokens[:SHARED_PAGES] = self.texts[-1].tokens[:SHARED_PAGES]
            chains = [ROOT]
            for page in tokens:
                chains.append(next_chain(chains[-1], page))
            self.texts.append(Words(chains[1:], tokens))
            for name in ((layer, chain) for layer in range(LAYERS) for chain in chains[1:]):
                content = rng.integers(0, 256, PAGE, dtype=np.uint8)
                content[rng.integers(0, 3 * PAGE) :] = 7
                self.content.setdefault(name, content)


class Workload:
    def __init__(self, folder: Path) -> None:
        self.folder, self.rng = folder, np.random.default_rng(3)
        self.book = Book(self.rng)
        self.sequences: list[Sequence] = []
        self.sessions: dict[str, tuple[int, int, bytes]] = {}
        """Name -> text, pages, payload."""
        self.states: dict[bytes, bytes] = {}
        """Chain -> payload of what may be there; it goes when its room is needed."""
        self.counts: Counter[str] = Counter()
        self.ratios: list[float] = []
        """Of the file to what is alive in it, whenever it was at its cap."""
        self.start()

    def start(self) -> None:
        cpu = torch.device("cpu")
        self.store = TieredStore(
            LARGE,
            LAYERS,
            host=Arena("host", HOST_CAP, PAGE, cpu),
            gpu=Arena("gpu", GPU_CAP, PAGE, cpu, reserved_bytes=RESERVED),
            disk=disk_tier(self.folder, cap_bytes=DISK_CAP),
            codec="zstd",
        )
        self.store.chains_to_keep = lambda: {
            chain for text, count, _ in list(self.sessions.values()) for chain in self.book.texts[text].chains[:count]
        }

    def pick(self, items: list[Sequence]) -> Sequence:
        return items[self.rng.integers(len(items))]

    # Sequences

    def begin(self) -> None:
        """Whatever of a text is stored is found and never computed again."""
        if len(self.sequences) == MOST_SEQUENCES:
            self.drop()
        text = int(self.rng.integers(NUM_TEXTS))
        known = self.adopt(text, int(self.rng.integers(1, TEXT_PAGES + 1)))
        self.counts["pages found"] += LAYERS * known

    def adopt(self, text: int, most: int) -> int:
        words = self.book.texts[text]
        known = self.store.num_known(words.chains[:most], range(LAYERS))
        held = max((self.shared(other, text) for other in self.sequences), default=0)
        assert known >= min(held, most), "a page in use is not known"
        pids = [self.store.adopt(layer, words.chains[:known], words.tokens[:known]).tolist() for layer in range(LAYERS)]
        self.sequences.append(Sequence(text, pids))
        return known

    def shared(self, sequence: Sequence, text: int) -> int:
        if sequence.text == text:
            return len(sequence)
        return min(len(sequence), SHARED_PAGES) if sequence.text // 2 == text // 2 else 0

    def grow(self) -> None:
        """By several pages, all layers; if they have no room, by none."""
        sequence = self.pick(self.sequences)
        words, start = self.book.texts[sequence.text], len(sequence)
        stop = min(TEXT_PAGES, start + int(self.rng.integers(1, 4)))
        chains, added = words.chains[start:stop], []
        try:
            for layer in range(LAYERS):
                data = (
                    np.stack([self.book.content[layer, chain] for chain in chains]) if chains else np.empty((0, PAGE))
                )
                pids = self.store.put(layer, chains, words.tokens[start:stop], torch.from_numpy(data).to(torch.uint8))
                added.append(pids.tolist())
        except CapacityError:
            self.refuse(added)
            return
        for held, pids in zip(sequence.pids, added, strict=True):
            held += pids

    def write_one(self) -> None:
        """A page is filled in place and sealed, as decoding does; sometimes it is thrown away instead."""
        sequence = self.pick(self.sequences)
        if len(sequence) == TEXT_PAGES:
            return
        words, at, added = self.book.texts[sequence.text], len(sequence), []
        is_kept = self.rng.random() < 0.9
        try:
            for layer in range(LAYERS):
                page = self.store.open_page(layer)
                page.bytes.copy_(torch.from_numpy(self.book.content[layer, words.chains[at]]))
                if is_kept:
                    added.append([self.seal(page, words.chains[at], words.tokens[at])])
                else:
                    self.store.discard(page)
        except CapacityError:
            self.refuse(added)
            return
        for held, pids in zip(sequence.pids, added, strict=is_kept):
            held += pids

    def seal(self, page: OpenPage, chain: bytes, tokens: np.ndarray) -> int:
        try:
            return self.store.seal(page, chain, tokens)
        except CapacityError:
            self.store.discard(page)
            raise

    def refuse(self, added: list[list[int]]) -> None:
        """Memory and disk are full of what is in use: one user has to go."""
        for pids in added:
            self.store.release(np.array(pids, dtype=np.int64))
        self.counts["refused by memory"] += 1
        self.drop()

    def fork(self) -> None:
        if len(self.sequences) == MOST_SEQUENCES:
            self.drop()
        whole = self.pick(self.sequences)
        stop = int(self.rng.integers(0, len(whole) + 1))
        part = Sequence(whole.text, [pids[:stop] for pids in whole.pids])
        for pids in part.pids:
            self.store.retain(np.array(pids, dtype=np.int64))
        self.sequences.append(part)

    def drop(self) -> None:
        sequence = self.sequences.pop(self.rng.integers(len(self.sequences)))
        for pids in sequence.pids:
            self.store.release(np.array(pids, dtype=np.int64))
        if not self.sequences:
            self.sequences.append(Sequence(sequence.text, [[] for _ in range(LAYERS)]))

    def read(self) -> None:
        self.read_of(self.pick(self.sequences), int(self.rng.choice(PARTS)), int(self.rng.integers(1, 30)))

    def read_of(self, sequence: Sequence, parts: int, rows: int) -> None:
        if not len(sequence):
            return
        layer, rng = int(self.rng.integers(LAYERS)), self.rng
        asked = rng.permutation(len(sequence))[: rng.integers(1, len(sequence) + 1)]
        of_page, of_part = rng.integers(0, len(asked), rows), rng.integers(0, parts, rows)
        out = torch.empty(rows, PAGE // parts, dtype=torch.uint8)
        pids = np.array(sequence.pids[layer])[asked]
        self.store.gather(pids, of_page, of_part, parts, out, promote=bool(rng.integers(2)))
        chains = self.book.texts[sequence.text].chains
        expected = [
            self.book.content[layer, chains[asked[page]]].reshape(parts, -1)[part]
            for page, part in zip(of_page, of_part, strict=True)
        ]
        np.testing.assert_array_equal(out.numpy(), np.stack(expected))

    # Sessions

    def save(self) -> None:
        """All of it durable, or refused: then what was saved before stays as it was."""
        disk, sequence = self.disk, self.pick(self.sequences)
        name = f"s{self.rng.integers(MOST_SESSIONS)}"
        payload = self.rng.bytes(int(self.rng.integers(1, LARGEST_SESSION)))
        try:
            self.store.flush()
            try:
                disk.put_session(name, payload)
            except StorageFullError:
                if not self.store.make_room(len(payload)):
                    raise
                disk.put_session(name, payload)
        except StorageFullError as error:
            if not error.is_at_cap:
                raise
            self.counts["refused by the disk"] += 1
            self.delete()
            return
        self.sessions[name] = sequence.text, len(sequence), payload

    def delete(self) -> None:
        """Needs no more room than is kept free, however full the disk."""
        name = f"s{self.rng.integers(MOST_SESSIONS)}"
        assert self.disk.delete_session(name) == (self.sessions.pop(name, None) is not None)

    def load(self) -> None:
        if not self.sessions:
            return
        if len(self.sequences) == MOST_SEQUENCES:
            self.drop()
        names = sorted(self.sessions)
        name = names[self.rng.integers(len(names))]
        text, count, payload = self.sessions[name]
        assert self.disk.get_session(name) == payload
        assert self.adopt(text, count) == count, f"session {name} lost a page"
        self.read_of(self.sequences[-1], 1, 12)

    # States

    def leave(self) -> None:
        """Stored while there is room: nothing makes way for it."""
        sequence = self.pick(self.sequences)
        if not len(sequence):
            return
        chain = self.book.texts[sequence.text].chains[len(sequence) - 1]
        payload = self.rng.bytes(int(self.rng.integers(1, LARGEST_STATE)))
        try:
            self.store.flush()  # pages that wait for the writer make others go
            pages = self.disk.num_pages
            self.disk.put_state(chain, payload)
        except StorageFullError as error:
            if not error.is_at_cap:
                raise
            self.counts["states refused"] += 1
            return
        assert self.disk.num_pages >= pages
        self.states[chain] = payload

    def find(self) -> None:
        """As it was left, or not at all."""
        for chain, payload in list(self.states.items()):
            found = self.disk.get_state(chain)
            assert found in (payload, None)
            if found is None:
                del self.states[chain]
                self.counts["states gone"] += 1

    def reopen(self) -> None:
        """What was closed writes what it still can; sessions are whole."""
        self.store.close()
        self.sequences.clear()
        self.start()
        assert self.disk.session_names() == sorted(self.sessions)
        for name, (text, count, payload) in self.sessions.items():
            assert self.disk.get_session(name) == payload
            assert self.store.num_known(self.book.texts[text].chains[:count], range(LAYERS)) == count
        self.begin()

    @property
    def disk(self) -> DiskTier:
        assert self.store.disk is not None
        return self.store.disk

    # Checks

    def step(self) -> None:
        operations: list[tuple[Callable[[], None], float]] = [
            (self.grow, 28), (self.write_one, 14), (self.read, 24), (self.begin, 10), (self.fork, 6), (self.drop, 4),
            (self.save, 5), (self.load, 4), (self.delete, 2.5), (self.reopen, 0.3),
            (self.leave, 5), (self.find, 1),
        ]  # fmt: skip
        weights = np.array([weight for _, weight in operations])
        operation, _ = operations[self.rng.choice(len(operations), p=weights / weights.sum())]
        operation()
        self.counts[operation.__name__] += 1
        self.check_sizes()

    def check_sizes(self) -> None:
        size = os.stat(self.folder / "data.mdb").st_size
        assert size <= DISK_CAP
        for arena, cap in ((self.store.gpu, GPU_CAP), (self.store.host, HOST_CAP)):
            assert arena is not None
            assert arena.data.untyped_storage().nbytes() + arena.reserved_bytes <= cap
            assert arena.used_bytes <= cap
        self.store.check_integrity()
        self.disk.check_integrity()
        error = self.store.disk_error
        assert error is None or error.is_at_cap, error
        if size > 0.98 * DISK_CAP:
            self.ratios.append(size / self.disk.used_bytes)


def test_no_tier_is_ever_above_its_cap(tmp_path: Path, figures: list[str]) -> None:
    workload = Workload(tmp_path / "s")
    workload.begin()
    for _ in range(OPERATIONS):
        workload.step()
    workload.reopen()
    disk, counts, ratios = workload.disk, workload.counts, workload.ratios
    assert list(disk.damaged_pages()) == list(disk.damaged_states()) == []
    assert len(ratios) > OPERATIONS / 2, "the disk's cap was hardly ever reached"
    assert counts["refused by memory"]
    assert counts["refused by the disk"]
    assert counts["states refused"]
    assert counts["states gone"]
    assert fmean(ratios) <= MOST_ABOVE_LIVE
    assert disk.compact()
    compacted = os.stat(workload.folder / "data.mdb").st_size / disk.used_bytes
    assert compacted <= MOST_COMPACTED
    workload.store.close()
    figures.append(
        f"caps: {OPERATIONS} operations, {len(ratios)} of them with the file at its cap, there {fmean(ratios):.2f} x "
        f"its live bytes (at worst {max(ratios):.2f}), {compacted:.2f} x after compaction; {dict(counts)}"
    )
