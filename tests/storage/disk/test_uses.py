"""What was used longest ago goes first, of one use its end, and nothing that a living owner may be using."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stratakv.storage.disk.folder_lease import FolderLease
from stratakv.storage.disk.lmdb_file import PAGES, STATES, USES, LmdbFile
from stratakv.storage.disk.uses import Uses

A, B, C, D = (bytes([letter]) * 16 for letter in b"abcd")


def oldest(uses: Uses, chains: tuple[bytes, ...] = (A, B, C, D), num_bytes: int | None = None) -> list[bytes]:
    """Chains of pages alone, of 10 bytes each."""
    sizes = {(PAGES, chain): 10 for chain in chains}
    return [chain for _, chain in uses.oldest(sizes, num_bytes)]


class Tiers:
    """Tiers on one folder, as far as they note what they use."""

    def __init__(self, folder: Path, close: ExitStack) -> None:
        self.folder, self.close = folder, close
        self.file = LmdbFile.share(folder, 1 << 20, check=False, is_first=True)
        close.callback(self.file.release)

    def open(self) -> Uses:
        lease = FolderLease(self.folder)
        self.close.callback(lease.release)
        return Uses(self.file, lease)

    def use(self, uses: Uses, *chains: bytes) -> None:
        uses.begin()
        self.stamp(uses, *chains)

    def stamp(self, uses: Uses, *chains: bytes) -> None:
        with self.file.writing() as transaction:
            uses.stamp(transaction, list(chains))

    def write(self, key: bytes, row: bytes) -> None:
        with self.file.writing() as transaction:
            transaction.put(key, row, db=self.file.handle(USES))


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    with ExitStack() as close:
        yield Tiers(tmp_path, close)


def test_the_oldest_use_goes_first_and_of_one_use_its_end(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A, B)
    tiers.use(uses, C, D)
    assert oldest(uses) == [B, A, D, C]
    tiers.use(uses, A, B)
    assert oldest(uses) == [D, C, B, A]


def test_of_one_use_states_go_before_pages(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A, B)
    tiers.use(uses, C)
    sizes = dict.fromkeys([(PAGES, A), (STATES, A), (PAGES, B), (STATES, C), (PAGES, C)], 10)
    assert list(uses.oldest(sizes, None)) == [(STATES, A), (PAGES, B), (PAGES, A), (STATES, C), (PAGES, C)]


def test_no_more_goes_than_is_asked_for(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A, B, C)
    for num_bytes, expected in ((0, []), (10, [C]), (11, [C, B]), (100, [C, B, A])):
        assert oldest(uses, (A, B, C), num_bytes) == expected


def test_what_was_found_in_memory_is_stamped_with_what_is_written_next(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A)
    tiers.use(uses, B)
    uses.begin()
    uses.touch([A])
    assert oldest(uses, (A, B)) == [A, B]
    tiers.stamp(uses, C)
    assert oldest(uses, (A, B, C)) == [B, C, A]


def test_a_number_is_drawn_for_each_use_and_not_for_each_stamp(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A)
    tiers.stamp(uses, B)
    tiers.use(uses, C)
    found = uses.oldest(dict.fromkeys([(PAGES, chain) for chain in (A, B, C, D)], 1), None)
    assert {chain: number for (_, chain), (number, _) in found.items()} == {A: 1, B: 1, C: 2, D: 0}


def test_what_another_has_used_since_it_opened_stays(tiers: Tiers) -> None:
    mine = tiers.open()
    tiers.use(mine, A)
    other = tiers.open()
    tiers.use(mine, B)
    tiers.use(other, C)
    assert oldest(mine) == [D, A]
    assert oldest(other) == [D], "the one who came first may be using more"
    other._lease.release()
    assert oldest(mine) == [D, A, B, C]


def test_damage_changes_the_order_alone(tiers: Tiers) -> None:
    uses = tiers.open()
    tiers.use(uses, A, B)
    tiers.write(A, b"short")
    tiers.write(b"clock", b"long" * 4)
    assert oldest(uses, (A, B)) == [A, B]
    tiers.use(uses, C)
    assert uses.oldest({(PAGES, C): 1}, None)[PAGES, C][0] == 1
