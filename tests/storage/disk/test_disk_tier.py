"""The disk tier under faults: killed writers, and pages that are damaged (whole files: `test_lmdb_file.py`)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import batch_writer
import numpy as np
import pytest
import torch
from kv_pages import FINGERPRINT, LARGE, SMALL, disk_tier, lose_pages, read_back, store_on, text
from large_pages import PAGES, TEXT, adopted, overwrite, write_pages

from stratakv.storage import CorruptPageError, page_key
from stratakv.storage.codecs import make_codec
from stratakv.storage.disk import lmdb_file, record

LMDB_PAGE = 4096


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
    assert (tokens.tolist(), name) == (TEXT.tokens[3].tolist(), key)
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
    lose_pages(store, caught.value.pages)
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
