"""One data file: what a block writes is there as a whole or not at all, and a file that lacks something is refused."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from kv_pages import delete_pages, disk_tier
from large_pages import all_keys, write_pages

from stratakv.storage import StorageFullError, StoreUnavailableError
from stratakv.storage.disk.lmdb_file import PAGES, LmdbFile

LMDB_PAGE = 4096
MB = 1 << 20


def opened(folder: Path, map_bytes: int = MB) -> LmdbFile:
    return LmdbFile.share(folder, map_bytes, check=False, is_first=True)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LmdbFile]:
    file = opened(tmp_path)
    yield file
    file.release()


def put(file: LmdbFile, key: bytes, value: bytes) -> None:
    with file.writing() as transaction:
        transaction.put(key, value, db=file.handle(PAGES))


def get(file: LmdbFile, key: bytes) -> bytes | None:
    with file.reading() as transaction:
        found = transaction.get(key, db=file.handle(PAGES))
        return None if found is None else bytes(found)


def test_a_block_that_raises_stores_nothing(file: LmdbFile) -> None:
    def fail() -> None:
        with file.writing() as transaction:
            transaction.put(b"a", b"2", db=file.handle(PAGES))
            raise KeyError

    put(file, b"a", b"1")
    with pytest.raises(KeyError):
        fail()
    assert get(file, b"a") == b"1"


def test_a_full_map_is_told_apart_and_can_be_extended(file: LmdbFile) -> None:
    put(file, b"a", b"1")
    with pytest.raises(lmdb.MapFullError):
        put(file, b"b", bytes(MB))
    assert (get(file, b"a"), get(file, b"b")) == (b"1", None)
    file.extend(3 * MB)
    put(file, b"b", bytes(MB))
    assert file.map_bytes == 3 * MB
    file.extend(MB)
    assert file.map_bytes == 3 * MB, "it never shrinks"


def test_a_process_opens_a_file_once_however_its_folder_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "s")
    one, two = opened(tmp_path / "s"), opened(tmp_path / "link", 2 * MB)
    assert one is two
    assert one.map_bytes == 2 * MB
    put(one, b"a", b"1")
    one.release()
    assert get(two, b"a") == b"1", "it is open until the last of them has given it back"
    two.release()
    again = opened(tmp_path / "s")
    assert again is not one
    assert get(again, b"a") == b"1"
    again.release()


def test_a_commit_to_a_file_that_was_replaced_is_not_acknowledged(tmp_path: Path) -> None:
    """Nor is the other file taken for ours, since it lacks what was acknowledged."""
    file = opened(tmp_path)
    put(file, b"a", b"1")
    shutil.copy(tmp_path / "data.mdb", tmp_path / "before")
    put(file, b"a", b"2")
    os.replace(tmp_path / "before", tmp_path / "data.mdb")
    with pytest.raises(StorageFullError, match=r"replaced by another file\); opening it again failed, too .*was ackno"):
        put(file, b"a", b"3")
    with pytest.raises(StoreUnavailableError, match="cannot be opened again"):
        get(file, b"a")
    file.release()


def test_compacting_gives_room_back_and_leaves_nothing_beside_the_file(file: LmdbFile, tmp_path: Path) -> None:
    put(file, b"a", b"1")
    put(file, b"b", bytes(MB // 2))
    with file.writing() as transaction:
        transaction.delete(b"b", db=file.handle(PAGES))
    before = file.size()
    file.compact()
    assert file.size() < before - MB // 2
    put(file, b"c", b"3")
    assert [get(file, key) for key in (b"a", b"b", b"c")] == [b"1", None, b"3"]
    assert {path.name for path in tmp_path.iterdir()} == {"data.mdb", "lock.mdb"}


# Files that lack something


@pytest.mark.parametrize("left", [1, LMDB_PAGE, 2 * LMDB_PAGE, 3 * LMDB_PAGE, 0.5, 0.99, -LMDB_PAGE, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, left: float) -> None:
    """Touching what it lacks would kill the process."""
    write_pages(tmp_path / "s")
    file = tmp_path / "s" / "data.mdb"
    size = file.stat().st_size
    os.truncate(file, int(left * size) if 0 < left < 1 else int(left) % size)
    with pytest.raises(StoreUnavailableError, match=str(tmp_path)):
        disk_tier(tmp_path / "s")
    file.unlink()
    disk_tier(tmp_path / "s").close()


@pytest.mark.parametrize("what", ["not-lmdb", "zeroed-trees"])
def test_a_foreign_or_destroyed_file_is_refused(tmp_path: Path, what: str) -> None:
    write_pages(tmp_path / "s", 12)
    file = tmp_path / "s" / "data.mdb"
    data = file.read_bytes()
    kept = 2 * LMDB_PAGE if what == "zeroed-trees" else 0
    file.write_bytes(data[:kept] + bytes([0] if kept else [7]) * (len(data) - kept))
    with pytest.raises(StoreUnavailableError, match=r"\(path=\)"):
        disk_tier(tmp_path / "s")
    file.unlink()
    disk_tier(tmp_path / "s").close()


@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_file_is_never_taken_for_a_truncated_one(tmp_path: Path, seed: int) -> None:
    """LMDB may leave the last pages of a deleting transaction unwritten."""
    rng = random.Random(seed)
    disk = disk_tier(tmp_path / "s")
    for _ in range(3):
        disk.write_pages([(rng.randbytes(18), bytes(800)) for _ in range(rng.randint(50, 400))])
    for _ in range(8):
        doomed = [key for key in all_keys(disk) if rng.random() < 0.4]
        delete_pages(disk, doomed)
        disk.check_integrity()
    disk.close()
    disk_tier(tmp_path / "s").close()
