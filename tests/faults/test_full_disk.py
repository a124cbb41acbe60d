"""A disk with no room at the start costs the saving only: what cannot be made is done without, and said."""

from __future__ import annotations

import errno
import logging
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from children import Say, child
from conversations import begin, load, state_of, take_turn
from typer.testing import CliRunner, Result

from stratakv.runtime.cli.app import app
from stratakv.runtime.sessions.saved import StoreFolder, store_folders
from stratakv.storage import DiskTier, StoreUnavailableError
from stratakv.storage.disk.reserve import RESERVE_BYTES
from stratakv.storage.disk.share import bytes_in
from stratakv.storage.errors import NoRoomError

SEED = 3
KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system of a megabyte, or as many as is asked for; skipped where none can be mounted."""
    place, size = tmp_path / "disk", getattr(request, "param", 1)
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", place]).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place: Path, *, but: int) -> Path:
    """All of a file system but so many bytes."""
    found = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - but))
    return filler


@pytest.mark.forks
def test_a_store_that_does_not_fit_is_no_room_and_leaves_nothing_that_looks_damaged(small_disk: Path) -> None:
    """At every fill: where LMDB's file would be cut short, where its table of readers would be, where neither."""

    def open_at_every_fill(say: Say, wait: Callable[[], None]) -> None:
        for number, free in enumerate(range(0, 72 * KIB, 4 * KIB)):
            folder = small_disk / str(number)
            filler = fill(small_disk, but=free)
            try:
                DiskTier(folder, 1 << 24, bytes(16), None).close()
                say("opened")
            except NoRoomError:
                say("no room")
            filler.unlink()
            DiskTier(folder, 1 << 24, bytes(16), None).close()

    with child(open_at_every_fill) as found:
        said = [found.hear() for _ in range(18)]
        assert found.join() == 0, "a write to a full disk through a memory map kills"
    assert said == sorted(said), "more room is never worse"
    assert set(said) == {"no room", "opened"}


def test_reading_goes_on_without_a_store_that_cannot_be_made(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with load(tiny_llama, tmp_path / "whole") as runtime:
        chat = begin(runtime, SEED)
        take_turn(chat, SEED, 0)
        expected = state_of(chat)

    def refuse(descriptor: int, offset: int, length: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with caplog.at_level(logging.WARNING), load(tiny_llama, tmp_path / "full") as runtime:
        assert runtime.store.disk is None
        chat = begin(runtime, SEED)
        take_turn(chat, SEED, 0)
        assert state_of(chat) == expected
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("going on without a disk tier, nothing is kept: store folder ")
    assert "No space left on device" in said
    assert store_folders(tmp_path / "full") == []


def test_other_failures_are_refused_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, length: int) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StoreUnavailableError) as caught:
        DiskTier(tmp_path / "s", 1 << 24, bytes(16), None)
    assert not isinstance(caught.value, NoRoomError)


def test_what_is_stored_is_read_on_a_full_disk(tiny_llama: Path, tmp_path: Path, small_disk: Path) -> None:
    """Also under another spelling of the model, which cannot be noted."""
    alias = tmp_path / "alias"
    alias.symlink_to(tiny_llama)
    with load(tiny_llama, small_disk / "kv", disk_gb=0.0006) as runtime:
        chat = runtime.chat()
        chat.read_text("A letter for the keeper. " * 10)
        chat.save("s")
        count = chat.num_tokens
    fill(small_disk, but=0)
    for spelling in (tiny_llama, alias):
        with load(spelling, small_disk / "kv", disk_gb=0.0006) as runtime:
            chat = runtime.chat(session="s")
            assert chat.restored == chat.num_tokens == count
            assert chat.send("And then?", max_new_tokens=2).text is not None


def sessions(store: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["sessions", words[0], "--kv-dir", str(store), *words[1:]])


@pytest.mark.parametrize("small_disk", [24], indirect=True)
@pytest.mark.parametrize(("count", "size"), [(3, 20_000), (2, 3_000_000), (200, 10_000)])
def test_sessions_can_be_removed_from_a_full_disk_and_the_room_is_given_back(
    small_disk: Path, count: int, size: int
) -> None:
    folder = small_disk / f"m_{bytes(16).hex()}"
    disk = DiskTier(folder, 16 << 20, bytes(16), None, is_shared=True)
    for number in range(count):
        disk.put_session(f"s{number}", random.Random(number).randbytes(size))
    disk.close()
    filler = fill(small_disk, but=0)
    for number in range(count):
        with StoreFolder(folder) as store:
            assert store.disk.delete_session(f"s{number}")
    done = sessions(small_disk, "gc")
    assert done.exit_code == 0, done.output
    assert bytes_in(folder) < 128 * KIB
    filler.unlink()
    disk = DiskTier(folder, 16 << 20, bytes(16), None, is_shared=True)
    assert disk.session_names() == []
    disk.close()


def test_where_nothing_was_set_aside_it_is_said_what_to_do(small_disk: Path) -> None:
    folder = small_disk / f"m_{bytes(16).hex()}"
    disk = DiskTier(folder, 1 << 24, bytes(16), None)
    disk.put_session("s", random.Random(0).randbytes(200_000))
    disk.compact()
    disk.close()
    filler = fill(small_disk, but=0)
    done = sessions(small_disk, "rm", "s")
    assert done.exit_code == 2
    assert f"0 bytes are free on that file system; removing takes some room itself: make {RESERVE_BYTES}" in done.stderr
    filler.unlink()
    assert sessions(small_disk, "rm", "s").exit_code == 0
