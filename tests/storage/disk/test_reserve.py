"""Room is set aside for removing things where a disk is full, and given up for nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stratakv.storage import StorageFullError
from stratakv.storage.disk.reserve import RESERVE_BYTES, keep_reserve, with_reserve

FULL = os.strerror(errno.ENOSPC)


class Disk:
    """Removing anything takes as much room as is set aside."""

    def __init__(self, folder: Path) -> None:
        self.reserve = folder / "reserve"
        self.num_tries = 0

    def remove(self) -> str:
        self.num_tries += 1
        if self.reserve.exists():
            raise StorageFullError(FULL)
        return "removed"


def test_what_is_set_aside_takes_room_on_the_disk(tmp_path: Path) -> None:
    keep_reserve(tmp_path)
    found = (tmp_path / "reserve").stat()
    assert found.st_size == RESERVE_BYTES <= 512 * found.st_blocks


def test_it_is_given_up_where_the_disk_is_full_and_set_aside_again(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    keep_reserve(tmp_path)
    assert with_reserve(tmp_path, disk.remove) == "removed"
    assert disk.num_tries == 2
    assert disk.reserve.stat().st_size == RESERVE_BYTES


def test_it_is_set_aside_again_though_removing_failed(tmp_path: Path) -> None:
    keep_reserve(tmp_path)

    def fail() -> None:
        raise StorageFullError(f"{FULL}: {'once' if (tmp_path / 'reserve').exists() else 'again'}")

    with pytest.raises(StorageFullError, match=r"again$"):
        with_reserve(tmp_path, fail)
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES


@pytest.mark.parametrize("error", [StorageFullError(FULL, is_at_cap=True), StorageFullError("read-only"), OSError(5)])
def test_other_failures_do_not_cost_it(tmp_path: Path, error: Exception) -> None:
    keep_reserve(tmp_path)
    before = (tmp_path / "reserve").stat().st_ino

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        with_reserve(tmp_path, fail)
    assert caught.value is error
    assert (tmp_path / "reserve").stat().st_ino == before


def test_where_nothing_is_set_aside_the_message_says_how_much_is_needed(tmp_path: Path) -> None:
    def fail() -> None:
        raise StorageFullError(FULL)

    says = f"^{FULL}; removing takes some room itself: make 12345 bytes free there and try again$"
    with pytest.raises(StorageFullError, match=says):
        with_reserve(tmp_path, fail, 12345)
    assert not (tmp_path / "reserve").exists()


@pytest.mark.parametrize(("free", "kept"), [(RESERVE_BYTES // 2, RESERVE_BYTES // 2), (20_000, 16_384), (4096, 0)])
def test_of_a_disk_with_less_a_part_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: int
) -> None:
    allocate = os.posix_fallocate

    def allocate_what_is_free(descriptor: int, offset: int, length: int) -> None:
        if length > free:
            raise OSError(errno.ENOSPC, FULL)
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate_what_is_free)
    keep_reserve(tmp_path)
    assert (tmp_path / "reserve").stat().st_size == kept
