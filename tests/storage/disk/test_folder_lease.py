"""A lease says what its owner may be using, for as long as the owner lives and not a moment longer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Say, child
from kv_pages import FINGERPRINT

from stratakv.storage import DiskTier, page_key
from stratakv.storage.disk.folder_lease import FolderLease, claimed_in, is_open

Wait = Callable[[], None]


def test_a_lease_claims_every_record_until_it_says_from_when_on(tmp_path: Path) -> None:
    mine, other = FolderLease(tmp_path), FolderLease(tmp_path)
    assert mine.others() == [0]
    other.hold_from(7)
    other.claim(1 << 20)
    assert (mine.others(), other.others()) == ([7], [0])
    other.release()
    assert mine.others() == []
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_death_is_told_to_whoever_comes_next_and_to_nobody_after(tmp_path: Path) -> None:
    dead = FolderLease(tmp_path)
    dead.claim(1 << 20)
    dead.forget()  # as the kernel does, however a process ends
    assert (claimed_in(tmp_path), is_open(tmp_path)) == (0, False)
    assert len(list(tmp_path.iterdir())) == 1, "to look is not to open"
    first, second = FolderLease(tmp_path), FolderLease(tmp_path)
    assert (first.after_a_death, second.after_a_death) == (True, False)
    first.release()
    second.release()


def test_of_the_claims_of_living_owners_the_largest_counts(tmp_path: Path) -> None:
    leases = [FolderLease(tmp_path) for _ in range(2)]
    for lease, claim in zip(leases, (3 << 20, 2 << 20), strict=True):
        lease.claim(claim)
    assert (claimed_in(tmp_path), is_open(tmp_path)) == (3 << 20, True)
    leases[0].release()
    assert claimed_in(tmp_path) == 2 << 20
    leases[1].release()
    assert (claimed_in(tmp_path), is_open(tmp_path)) == (0, False)


def test_nobody_comes_in_while_an_owner_is_alone(tmp_path: Path) -> None:
    mine, other = FolderLease(tmp_path), FolderLease(tmp_path)
    with mine.alone() as is_alone:
        assert not is_alone
    other.release()
    with mine.alone() as is_alone:
        assert is_alone
        with pytest.raises(OSError, match="another process is compacting this store; try again when it is done"):
            FolderLease(tmp_path)
        assert mine.others() == [], "who was refused leaves no lease"
    FolderLease(tmp_path).release()
    mine.release()


@pytest.mark.forks
@pytest.mark.parametrize("said", [b"\xff\xfe later", b"", b"9" * 5000, b"x y z", b"-1 -1"])
def test_a_lease_that_says_something_else_claims_all_records_and_no_bytes(tmp_path: Path, said: bytes) -> None:
    """A later version's, say."""
    disk = DiskTier(tmp_path / "a", 5 << 20, FINGERPRINT, None, is_shared=True)
    disk.write_pages([(page_key(0, bytes(16)), b"page")])
    with child(lambda say, wait: hold_lease(tmp_path / "a", said, say, wait)) as other:
        assert other.hear() == "held"
        assert disk._share is not None
        assert claimed_in(tmp_path / "a") == disk._share.claimed_bytes
        assert disk.sweep(lambda key: False) == 0
        other.go()
        assert other.join() == 0
    disk.close()


def hold_lease(folder: Path, said: bytes, say: Say, wait: Wait) -> None:
    lease = FolderLease(folder)
    os.ftruncate(lease._descriptor, 0)
    os.pwrite(lease._descriptor, said, 0)
    say("held")
    wait()
