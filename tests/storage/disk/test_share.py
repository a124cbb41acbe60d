"""Folders of one store share one cap: claims in steps, room that others give up, and never a byte too many."""

from __future__ import annotations

import fcntl
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from children import Say, child
from kv_pages import FINGERPRINT, LARGE

from stratakv.storage import DiskTier, StorageFullError, StoreUnavailableError, page_key
from stratakv.storage.disk import record
from stratakv.storage.disk.share import alone_in, bytes_in

MB = 1 << 20
CAP = 5 * MB
Wait = Callable[[], None]


def opened(folder: Path, cap_bytes: int = CAP) -> DiskTier:
    return DiskTier(folder, cap_bytes, FINGERPRINT, None, is_shared=True)


def write(disk: DiskTier, first: int, count: int = 1) -> None:
    """Pages of random bytes, in one transaction."""
    records = []
    for number in range(first, first + count):
        key = page_key(0, number.to_bytes(16, "big"))
        payload = random.Random(number).randbytes(LARGE.page_bytes)
        records.append((key, record.pack(record.PAGE, FINGERPRINT, key, payload)))
    disk.write_pages(records)


def fill(disk: DiskTier) -> int:
    """Pages until it is full; returns how many."""
    for number in range(0, 10 * CAP // LARGE.page_bytes, 4):
        try:
            write(disk, number, 4)
        except StorageFullError:
            return number
    raise AssertionError("it was never full")


def taken(root: Path) -> int:
    """By all that is in it, as it says itself."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_what_folders_take_together_never_exceeds_the_cap(tmp_path: Path) -> None:
    disks = [opened(tmp_path / name) for name in "abc"]
    rng, refused = random.Random(1), Counter[int]()
    for number in range(4 * CAP // LARGE.page_bytes):
        which = rng.randrange(3)
        try:
            write(disks[which], number)
        except StorageFullError:
            refused[which] += 1
        assert taken(tmp_path) <= CAP
        if min(refused[which] for which in range(3)) > 3:
            break
    assert set(refused) == {0, 1, 2}
    assert taken(tmp_path) > 0.8 * CAP, "most of it can be had"
    for disk in disks:
        assert disk.delete_session("none") is False, "deleting always finds room"
        assert disk.sweep(lambda key: False)
        disk.check_integrity()
        disk.close()
    assert taken(tmp_path) <= CAP


def test_a_single_folder_may_take_nearly_all_of_it(tmp_path: Path) -> None:
    disk = opened(tmp_path / "a")
    fill(disk)
    assert 0.9 * CAP < taken(tmp_path) <= CAP
    assert disk.cap_bytes == CAP
    disk.close()


def test_a_claim_is_room_that_others_do_not_get(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "a"), opened(tmp_path / "b")
    assert one.claim(3 * MB) == 3 * MB
    assert other.claim(4 * MB) < 2 * MB
    assert one.claim(0) == 3 * MB, "it is not lost again"
    fill(other)
    write(one, 0, 5 * MB // (2 * LARGE.page_bytes) // 2)
    assert one.claim(0) == 3 * MB
    assert taken(tmp_path) <= CAP
    one.close()
    assert 3 * MB < other.claim(CAP) < 4 * MB, "its file is still there"
    other.close()


@pytest.mark.forks
def test_a_claim_ends_with_its_owner_however_it_dies(tmp_path: Path) -> None:
    def claim(say: Say, wait: Wait) -> None:
        wait()
        disk = opened(tmp_path / "a")
        say(disk.claim(CAP))
        wait()

    with child(claim) as other:
        disk = opened(tmp_path / "b")
        other.go()
        assert other.hear() > 3 * MB
        before = disk.claim(CAP)
        assert before < 2 * MB
        other.kill()
    assert disk.claim(CAP) > 4 * MB
    disk.close()


def test_others_give_way_only_when_nothing_else_is_left(tmp_path: Path) -> None:
    full = opened(tmp_path / "a")
    write(full, 0, 3 * MB // LARGE.page_bytes)
    full.close()
    disk, asked = opened(tmp_path / "b"), list[int]()

    def give_way(num_bytes: int) -> int:
        asked.append(num_bytes)
        before = bytes_in(tmp_path / "a")
        (tmp_path / "a" / "data.mdb").unlink()
        return before

    disk.give_way = give_way
    disk.claim(MB)
    assert asked == []
    assert disk.claim(3 * MB) == 3 * MB
    assert len(asked) == 1
    assert 0 < asked[0] < 2 * MB
    disk.give_way = lambda num_bytes: 0
    assert disk.claim(2 * CAP) < CAP
    disk.close()


def test_the_message_says_who_takes_the_rest_and_what_helps(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "a"), opened(tmp_path / "b")
    one.claim(4 * MB)
    other.remedy = "ask for more"
    fill(other)
    with pytest.raises(StorageFullError) as caught:
        write(other, 10_000, 4)
    assert f"is full: cap {CAP} bytes, of which other folders of the store take 4" in str(caught.value)
    assert str(caught.value).endswith("; ask for more or remove sessions with `stratakv sessions rm`")
    one.close()
    (tmp_path / "a" / "data.mdb").unlink()
    fill(other)
    with pytest.raises(StorageFullError, match=f"is full: cap {CAP} bytes; ask for more$"):
        write(other, 10_000, 4)
    other.close()


def test_a_new_folder_is_refused_where_nothing_is_left(tmp_path: Path) -> None:
    one = opened(tmp_path / "a")
    one.claim(CAP)
    fill(one)
    with pytest.raises(StorageFullError, match=f"has no room for b: other folders take 5.* of its cap of {CAP} bytes"):
        opened(tmp_path / "b")
    assert taken(tmp_path) <= CAP
    one.close()


@pytest.mark.forks
def test_a_lock_on_the_root_does_not_live_on_in_a_fork(tmp_path: Path) -> None:
    def live(say: Say, wait: Wait) -> None:
        say("here")
        wait()

    with ExitStack() as forks:
        with alone_in(tmp_path):
            assert forks.enter_context(child(live)).hear() == "here"
        descriptor = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


@pytest.mark.parametrize("name", ["reserve", "lock.mdb"])
def test_what_a_link_in_a_foreign_store_leads_to_is_left_alone(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    opened(tmp_path / "a", 16 * MB).close()
    (tmp_path / "a" / name).unlink(missing_ok=True)
    (tmp_path / "a" / name).symlink_to(victim)
    with suppress(StoreUnavailableError):
        opened(tmp_path / "a", 16 * MB).close()
    assert victim.read_text() == "mine"
