"""The room that a disk tier has, the folders that it may be in, and whose records it reads there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from kv_pages import LARGE, disk_tier, read_back, store_on
from large_pages import PAGES, TEXT, adopted, all_keys, write_pages

from stratakv.storage import (
    CorruptPageError,
    DiskTier,
    RecordError,
    StorageFullError,
    StoreUnavailableError,
    page_key,
)
from stratakv.storage.disk import lmdb_file

# Room


def fill(disk: DiskTier, value: bytes, batch: int) -> list[bytes]:
    """Write batches until the disk refuses one; returns the keys that were stored."""
    keys: list[bytes] = []
    while True:
        more = [(len(keys) + i).to_bytes(18, "big") for i in range(batch)]
        try:
            disk.write_pages([(key, value) for key in more])
        except StorageFullError:
            return keys
        keys += more


@pytest.mark.parametrize(("size", "batch"), [(200, 32), (2000, 1), (16_500, 1), (16_500, 16)])
def test_a_full_disk_can_be_swept_and_filled_again(tmp_path: Path, size: int, batch: int) -> None:
    """Deleting needs room, too, and LMDB holds freed pages back for a while."""
    disk = disk_tier(tmp_path / "s", cap_bytes=1 << 20)
    disk.put_session("kept", bytes(100))
    first = fill(disk, bytes(size), batch)
    disk.check_integrity()
    assert disk.num_pages == len(first), "a refused batch leaves nothing behind"
    live = set(first[::7])
    assert disk.sweep(live.__contains__) == len(first) - len(live)
    assert set(all_keys(disk)) == live
    disk.check_integrity()
    disk.write_pages([(b"\xff" * 17 + bytes([i]), bytes(size)) for i in range(batch)])
    assert disk.delete_session("kept")
    assert disk.used_bytes <= disk.cap_bytes
    disk.check_integrity()
    disk.close()


def test_what_a_sweep_frees_can_be_used_at_once(tmp_path: Path) -> None:
    """Few and large records: more is freed in one transaction than was kept free before."""
    disk = disk_tier(tmp_path / "s", cap_bytes=1 << 20)
    keys = fill(disk, bytes(70_000), 1)
    dead = set(keys[2:6])
    assert disk.sweep(lambda key: key not in dead) == 4
    disk.write_pages([(b"\xff" * 17 + bytes([i]), bytes(70_000)) for i in range(4)])
    disk.check_integrity()
    disk.close()


def test_sweep_takes_dead_pages_and_states_only(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "s")
    chains = TEXT.chains[:20]
    disk.write_pages([(page_key(layer, chain), b"page") for layer in range(30) for chain in chains])
    for chain in chains:
        disk.put_state(chain, b"state")
    disk.put_session("kept", b"session")
    live = set(chains[3:9])
    assert disk.sweep(lambda key: key[-16:] in live) == 31 * 14
    assert [chain for chain in chains if disk.get_state(chain) is not None] == chains[3:9]
    for layer in range(30):
        assert [chain for chain in chains if disk.contains(page_key(layer, chain))] == chains[3:9]
    assert disk.get_session("kept") == b"session"
    assert disk.sweep(lambda key: True) == 0
    disk.close()


def test_a_smaller_cap_than_the_file_keeps_the_file(tmp_path: Path) -> None:
    write_pages(tmp_path / "s")
    size = (tmp_path / "s" / "data.mdb").stat().st_size
    disk = disk_tier(tmp_path / "s", cap_bytes=size // 2)
    assert disk.num_pages == 60
    fill(disk, bytes(500), 1)
    assert (tmp_path / "s" / "data.mdb").stat().st_size <= disk.cap_bytes
    disk.check_integrity()
    disk.close()


# Folders


def test_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        disk = disk_tier(tmp_path / "a" / "s")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "s").stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "s").iterdir()}
    leases = [name for name in files if name.startswith("lease.")]
    assert set(files) == {"config.json", "data.mdb", "lock.mdb", *leases}
    assert len(leases) == 1
    assert set(files.values()) == {0o600}
    disk.close()


def test_an_unusable_folder_says_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match=r"file/s cannot be used .*\(path=\)"):
        disk_tier(tmp_path / "file" / "s")
    with pytest.raises(StoreUnavailableError):
        disk_tier(tmp_path / "file")


def test_two_tiers_on_one_folder_share_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB breaks if a process opens a file twice. The folder may be spelt in two ways."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    one, two = disk_tier(Path("s")), disk_tier(tmp_path / "link" / "s")
    one.write_pages([(bytes(18), b"page")])
    assert two.contains(bytes(18))
    monkeypatch.chdir("/")
    one.close()
    assert two.contains(bytes(18))
    two.close()
    again = disk_tier(tmp_path / "s")
    assert again.contains(bytes(18))
    again.close()


def test_another_fingerprint_never_reads_our_records(tmp_path: Path) -> None:
    """Even in one folder: another model's KV under the same tokens is not ours."""
    write_pages(tmp_path / "s", 4)
    ours = disk_tier(tmp_path / "s")
    ours.put_session("name", b"session")
    ours.put_state(TEXT.chains[0], b"state")
    ours.close()
    theirs = disk_tier(tmp_path / "s", fingerprint=bytes(16))
    store = store_on(theirs, LARGE, host=8)
    pids = store.adopt(0, TEXT.chains[:4], TEXT.tokens[:4])
    with pytest.raises(CorruptPageError, match="fingerprint") as caught:
        read_back(store, pids)
    assert caught.value.pages == pids.tolist()
    with pytest.raises(RecordError, match="fingerprint"):
        theirs.get_session("name")
    with pytest.raises(RecordError, match="fingerprint"):
        theirs.get_state(TEXT.chains[0])
    store.close()


def test_sessions_and_states(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "s")
    assert disk.get_session("a") is None
    assert disk.get_state(TEXT.chains[0]) is None
    disk.put_session("b", b"1")
    disk.put_session("a", b"")
    disk.put_session("b", bytes(100_000))
    disk.put_state(TEXT.chains[0], b"state")
    disk.close()
    disk = disk_tier(tmp_path / "s")
    assert disk.session_names() == ["a", "b"]
    assert (disk.get_session("a"), disk.get_session("b")) == (b"", bytes(100_000))
    assert disk.get_state(TEXT.chains[0]) == b"state"
    assert disk.delete_session("b")
    assert not disk.delete_session("b")
    assert disk.session_names() == ["a"]
    disk.check_integrity()
    disk.close()


class Refusing:
    """A transaction that LMDB refuses once it has met `bad`, as after damage to the tree."""

    def __init__(self, real: lmdb.Transaction, bad: bytes) -> None:
        self.real, self.bad, self.is_over = real, bad, False

    def get(self, key: bytes, **options: object) -> memoryview | None:
        self.is_over = self.is_over or key == self.bad
        if self.is_over:
            raise lmdb.CorruptedError("mdb_get")
        return self.real.get(key, **options)


def test_a_page_that_lmdb_refuses_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pages(tmp_path)
    store, pids = adopted(tmp_path, 60)
    keys = [page_key(0, chain) for chain in TEXT.chains]
    really_reading = lmdb_file.LmdbFile.reading

    @contextmanager
    def reading(file: lmdb_file.LmdbFile) -> Iterator[Refusing]:
        with really_reading(file) as transaction:
            yield Refusing(transaction, keys[40])

    monkeypatch.setattr(lmdb_file.LmdbFile, "reading", reading)
    with pytest.raises(CorruptPageError) as caught:
        read_back(store, pids)
    assert caught.value.pages == [int(pids[40])]
    sound = np.delete(np.arange(60), 40)
    assert torch.equal(read_back(store, pids[sound]), PAGES[sound])
    store.close()
