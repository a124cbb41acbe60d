"""The disk tier under faults: killed writers, damaged files, full disks, foreign stores."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import batch_writer
import lmdb
import numpy as np
import pytest
import torch
from kv_pages import FINGERPRINT, LARGE, SMALL, disk_tier, random_pages, read_back, store_on, text

from stratakv.storage import (
    CorruptPageError,
    DiskTier,
    RecordError,
    StorageFullError,
    StoreUnavailableError,
    TieredStore,
    page_key,
)
from stratakv.storage.codecs import make_codec
from stratakv.storage.disk import lmdb_file, record

TEXT = text(LARGE, 60)
PAGES = random_pages(LARGE, 60)
LMDB_PAGE = 4096


def write_pages(folder: Path, count: int = 60) -> None:
    store = store_on(disk_tier(folder), LARGE, host=count)
    store.put(0, TEXT.chains[:count], TEXT.tokens[:count], PAGES[:count])
    store.close()


def adopted(folder: Path, count: int, **options: int) -> tuple[TieredStore, np.ndarray]:
    """A new store on `folder` and the ids of its first pages, none of them read yet."""
    store = store_on(disk_tier(folder), LARGE, host=8, **options)
    return store, store.adopt(0, TEXT.chains[:count], TEXT.tokens[:count])


def overwrite(folder: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change a stored value behind the store's back; None deletes it."""
    with lmdb.open(str(folder), max_dbs=3) as environment:
        pages = environment.open_db(b"pages")
        with environment.begin(db=pages, write=True) as transaction:
            value = change(transaction.get(key))
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)


# Crashes


def test_acknowledged_pages_survive_a_killed_writer(tmp_path: Path) -> None:
    """SIGKILL at a random moment of the next batch, five times on one folder. Batches are all or nothing."""
    folder, rng = tmp_path / "s", random.Random(0)
    command = [sys.executable, batch_writer.__file__, str(folder)]
    acked: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(5):
            writer.stdin.write("go\n")
            writer.stdin.flush()
            victim, wanted = 0, rng.randint(1, 6)
            while (line := writer.stdout.readline().split()) != ["dead"]:
                assert line, "the writer died by itself"
                if line[0] == "pid":
                    victim = int(line[1])
                else:
                    acked.append(int(line[1]))
                    wanted -= 1
                if victim and wanted <= 0:
                    os.kill(victim, signal.SIGKILL)
                    victim = 0
            check_batches(folder, acked)
        writer.stdin.close()
    assert len(acked) >= 5


def check_batches(folder: Path, acked: list[int]) -> None:
    disk = disk_tier(folder)
    assert disk.num_pages % batch_writer.BATCH == 0
    assert disk.num_pages >= batch_writer.BATCH * len(acked)
    keys = [key for batch in range(disk.num_pages // batch_writer.BATCH) for key in batch_writer.keys_of(batch)]
    assert set(acked) <= set(range(len(keys) // batch_writer.BATCH))
    out = np.zeros((len(keys), LARGE.page_bytes), dtype=np.uint8)
    tokens = np.tile(batch_writer.TOKENS, (len(keys), 1))
    assert disk.read_pages(keys, tokens, out.__getitem__, {0: make_codec("raw", LARGE)}) == {}
    np.testing.assert_array_equal(out, np.stack([batch_writer.page_of(key) for key in keys]))
    disk.check_integrity()
    disk.close()


# Damage


def flip_last_byte(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "flipped-bit": (flip_last_byte, "checksum"),
    "cut-short": (lambda value: value[:-1], "length"),
    "empty": (lambda value: b"", "length"),
    "zeros": (lambda value: bytes(len(value)), "magic"),
    "missing": (lambda value: None, "missing"),
    "other-page": (
        lambda value: record.pack(record.PAGE, FINGERPRINT, page_key(0, TEXT.chains[7]), bytes(LARGE.page_bytes)),
        "key",
    ),
    "other-tokens": (
        lambda value: record.pack(
            record.PAGE, FINGERPRINT, page_key(0, TEXT.chains[3]), bytes(LARGE.page_bytes), tokens=TEXT.tokens[4]
        ),
        "tokens",
    ),
    "other-codec": (
        lambda value: record.pack(
            record.PAGE, FINGERPRINT, page_key(0, TEXT.chains[3]), b"", codec=9, tokens=TEXT.tokens[3]
        ),
        "codec",
    ),
    "other-size": (
        lambda value: record.pack(
            record.PAGE, FINGERPRINT, page_key(0, TEXT.chains[3]), bytes(LARGE.page_bytes), raw_bytes=1 << 40,
            tokens=TEXT.tokens[3],
        ),
        "raw bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("gpu", [None, 4])
def test_a_damaged_page_is_named_and_can_be_replaced(tmp_path: Path, damage: str, gpu: int | None) -> None:
    write_pages(tmp_path / "s", 12)
    key = page_key(0, TEXT.chains[3])
    change, reason = DAMAGES[damage]
    overwrite(tmp_path / "s", key, change)

    store, pids = adopted(tmp_path / "s", 12, gpu=gpu)
    with pytest.raises(CorruptPageError, match=f"{key.hex()}: .*{reason}") as caught:
        read_back(store, pids)
    assert caught.value.pages == [pids[3]]
    store.check_integrity()

    tokens, name = store.describe(int(pids[3]))
    assert (tokens.tolist(), name) == (TEXT.tokens[3].tolist(), key.hex())
    store.replace(int(pids[3]), PAGES[3])
    assert torch.equal(read_back(store, pids), PAGES[:12])
    store.check_integrity()
    store.close()

    store, pids = adopted(tmp_path / "s", 12)
    assert torch.equal(read_back(store, pids), PAGES[:12])
    store.close()


def test_a_damaged_page_leaves_the_others_readable(tmp_path: Path) -> None:
    write_pages(tmp_path / "s", 12)
    for page in (2, 9):
        overwrite(tmp_path / "s", page_key(0, TEXT.chains[page]), flip_last_byte)
    store, pids = adopted(tmp_path / "s", 12)
    for _ in range(2):
        with pytest.raises(CorruptPageError) as caught:
            read_back(store, pids)
        assert caught.value.pages == [pids[2], pids[9]]
        store.check_integrity()
        assert store.host.num_free + store.host.num_pages == store.host.num_slots, "a failed read kept a slot"
    rest = [i for i in range(12) if i not in (2, 9)]
    assert torch.equal(read_back(store, pids[rest]), PAGES[rest])
    store.delete_damaged(caught.value.pages)
    store.release(pids)
    assert store.num_known(TEXT.chains[:12], [0]) == 2
    store.check_integrity()
    store.close()


def test_a_damaged_tree_is_damaged_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zeroed leaf of LMDB's own tree, in a store too large to be checked when it is opened: an error that names
    the pages below it, never an lmdb.Error."""
    monkeypatch.setattr(lmdb_file, "_CHECKED_BYTES", 0)
    small = text(SMALL, 60)
    keys = [page_key(0, chain) for chain in small.chains]
    pages = [
        record.pack(record.PAGE, FINGERPRINT, key, bytes(SMALL.page_bytes), tokens=tokens)
        for key, tokens in zip(keys, small.tokens, strict=True)
    ]
    disk = disk_tier(tmp_path / "s")
    disk.write_pages(list(zip(keys, pages, strict=True)))
    disk.close()
    file = tmp_path / "s" / "data.mdb"
    data = bytearray(file.read_bytes())
    start = data.index(keys[30]) // LMDB_PAGE * LMDB_PAGE
    data[start : start + LMDB_PAGE] = bytes(LMDB_PAGE)
    file.write_bytes(data)

    store = store_on(disk_tier(tmp_path / "s"), host=8)
    known = store.num_known(small.chains, [0])
    assert known <= 30, "what cannot be looked up is not known"
    pids = store.adopt(0, small.chains, small.tokens)
    with pytest.raises(CorruptPageError, match="MDB_CORRUPTED") as caught:
        read_back(store, pids)
    assert pids[30] in caught.value.pages
    assert len(caught.value.pages) < 20, "one leaf of many"
    assert min(caught.value.pages) == pids[known]
    store.check_integrity()
    good = np.setdiff1d(pids, caught.value.pages)
    assert not read_back(store, good).any()
    store.close()


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
        disk.delete_pages(doomed)
        disk.check_integrity()
    disk.close()
    disk_tier(tmp_path / "s").close()


def all_keys(disk: DiskTier) -> list[bytes]:
    """Every page key, read by a sweep that keeps everything."""
    keys: list[bytes] = []

    def keep(key: bytes) -> bool:
        keys.append(key)
        return True

    assert disk.sweep(keep) == 0
    return keys


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
