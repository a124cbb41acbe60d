"""What is there for the time being ends with its owner, however that ends, and nobody else's is touched."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Say, child
from faults import NOBODY, no_file_may_grow

from stratakv.storage.disk.folder_lease import FolderLease
from stratakv.storage.files.scratch import remove_all, scratch_folder, whole_file


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_folder_can_be_locked_by_whoever_is_given_it(tmp_path: Path) -> None:
    """As a store locks its own: it would wait for ever for the process it runs in."""
    with scratch_folder("bench", tmp_path) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_a_folder_is_gone_with_its_block(tmp_path: Path, error: type[BaseException] | None) -> None:
    def work() -> None:
        with scratch_folder("bench", tmp_path) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "data").write_bytes(bytes(100))
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert names(tmp_path) == []


def hold(folder: Path) -> Callable[[Say, Callable[[], None]], None]:
    def work(say: Say, wait: Callable[[], None]) -> None:
        with scratch_folder("bench", folder) as mine, whole_file(folder / "result") as file:
            (mine / "data").write_bytes(bytes(100))
            file.write(b"half")
            say(sorted(os.listdir(folder)))
            wait()

    return work


@pytest.mark.forks
def test_a_dead_owners_are_removed_by_the_next_and_a_living_ones_never(tmp_path: Path) -> None:
    with child(hold(tmp_path)) as living:
        theirs = living.hear()
        with child(hold(tmp_path)) as killed:
            assert set(theirs) < set(killed.hear())
            killed.kill()
        assert len(names(tmp_path)) == 4
        with scratch_folder("eval", tmp_path) as mine:
            assert names(tmp_path) == sorted([*theirs, mine.parent.name])
        living.go()
        assert living.join() == 0
    assert names(tmp_path) == ["result"]
    assert (tmp_path / "result").read_bytes() == b"half"


def test_what_is_called_otherwise_is_somebodys(tmp_path: Path) -> None:
    """However much it looks like ours."""
    kept = ["stratakv-bench-results", "stratakv-bench-0123456789abcdef", ".tmp", "stratakv-x-0123456789abcde.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "target").write_text("mine")
    (tmp_path / "stratakv-bench-0123456789abcdef.tmp").symlink_to(tmp_path / "target")
    with scratch_folder("bench", tmp_path):
        pass
    assert set(kept) < set(names(tmp_path))
    assert (tmp_path / "target").read_text() == "mine"


FORMER = ["stratakv-bench-ab_12cd9", ".convert-0123abcd"]


@pytest.mark.parametrize("name", FORMER)
def test_what_earlier_versions_left_goes_after_a_day_unless_a_store_in_it_is_open(tmp_path: Path, name: str) -> None:
    inside = tmp_path / name / "kv" / "model"
    inside.mkdir(parents=True)
    (inside / "data.mdb").write_bytes(bytes(100))

    def age(seconds: float) -> None:
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(path, (time.time() - seconds,) * 2)

    def is_left() -> bool:
        with scratch_folder("eval", tmp_path):
            return (tmp_path / name).exists()

    assert is_left()
    age(23 * 3600)
    assert is_left()
    lease = FolderLease(inside)
    age(25 * 3600)
    assert is_left()
    lease.release()
    age(25 * 3600)
    (inside / "data.mdb").touch()
    assert is_left(), "something in it was written to just now"
    age(25 * 3600)
    assert not is_left()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's")
def test_another_users_is_not_touched_whoever_is_root(tmp_path: Path) -> None:
    theirs = tmp_path / "stratakv-bench-0123456789abcdef.tmp"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    with scratch_folder("bench", tmp_path):
        assert theirs.is_dir()
    os.chown(theirs, 0, 0)
    with scratch_folder("bench", tmp_path):
        assert not theirs.exists()


@pytest.mark.forks
def test_a_fork_removes_nothing_of_its_parents(tmp_path: Path) -> None:
    with scratch_folder("bench", tmp_path) as folder:
        with child(lambda say, wait: remove_all()) as fork:
            assert fork.join() == 0
        assert folder.is_dir()


@pytest.mark.forks
def test_a_fork_keeps_nothing_of_its_parents(tmp_path: Path) -> None:
    def die_before_a_fork(say: Say, wait: Callable[[], None]) -> None:
        with scratch_folder("bench", tmp_path):
            if os.fork() == 0:
                say("forked")
                wait()
            os._exit(0)

    with child(die_before_a_fork) as parent:
        assert parent.hear() == "forked"
        parent.join()
        assert len(names(tmp_path)) == 1
        with scratch_folder("eval", tmp_path) as mine:
            assert names(tmp_path) == [mine.parent.name]
        parent.go()


def test_a_process_that_leaves_its_blocks_removes_its_own_first(tmp_path: Path) -> None:
    with scratch_folder("convert", tmp_path) as folder:
        (folder / "half").write_bytes(b"x")
        remove_all()
        assert names(tmp_path) == []


def test_a_file_takes_its_place_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")
    path.chmod(0o640)
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"half of it" * (1 // 0))
    assert path.read_text() == "before"
    with no_file_may_grow(1000), pytest.raises(OSError, match="File too large"), whole_file(path) as file:
        file.write(bytes(2000))
    assert path.read_text() == "before"
    with whole_file(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["result.json"]


def test_a_new_file_is_private_unless_said_otherwise(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for name, mode in (("private", None), ("open", 0o666)):
            with whole_file(tmp_path / name, *(() if mode is None else (mode,))):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644
