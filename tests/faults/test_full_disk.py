"""A disk with no room at the start costs the saving only: what cannot be made is done without, and said."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from children import Say, child
from conversations import begin, load, state_of, take_turn

from stratakv.runtime.saved import store_folders
from stratakv.storage import DiskTier, StoreUnavailableError
from stratakv.storage.errors import NoRoomError

SEED = 3
KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a megabyte; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place: Path, *, but: int) -> Path:
    """All of a file system but so many bytes."""
    found = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(bytes(found.f_bavail * found.f_frsize - but))
    return filler


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
