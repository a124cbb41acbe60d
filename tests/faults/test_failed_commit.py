"""A thread that reads beside a commit that failed: LMDB refuses every transaction until the file is opened again, and
what is stored is as good as before. Both orders in which the reader and the writer may notice are forced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from faults import FailingDisk
from kv_pages import FINGERPRINT, LARGE, disk_tier, random_pages, text

from stratakv.storage import DiskTier, StorageFullError, page_key
from stratakv.storage.codecs.raw import RawCodec
from stratakv.storage.disk import record
from stratakv.storage.disk.lmdb_file import LmdbFile

STORED, LATE = 3, 3
"""How many pages are stored, and the one whose commit fails."""
TEXT = text(LARGE, STORED + 1)
PAGES = random_pages(LARGE, STORED + 1).numpy()
KEYS = [page_key(0, chain) for chain in TEXT.chains]
PATIENCE_S = 30


def write(disk: DiskTier, numbers: range) -> None:
    disk.write_pages(
        [
            (KEYS[i], record.pack(record.PAGE, FINGERPRINT, KEYS[i], PAGES[i].tobytes(), tokens=TEXT.tokens[i]))
            for i in numbers
        ]
    )


def pages(disk: DiskTier) -> None:
    found = np.zeros_like(PAGES[:STORED])
    failures = disk.read_pages(
        KEYS[:STORED], TEXT.tokens[:STORED], lambda i: found[i], {RawCodec.code: RawCodec(LARGE)}
    )
    assert failures == {}
    np.testing.assert_array_equal(found, PAGES[:STORED])


def lookups(disk: DiskTier) -> None:
    assert [disk.contains(key) for key in KEYS] == [True] * STORED + [False]
    assert disk.num_leading(TEXT.chains, lambda chain: [page_key(0, chain)]) == STORED


def records(disk: DiskTier) -> None:
    assert disk.get_session("kept") == b"a session"
    assert [key for key, _ in disk.page_sizes()] == sorted(KEYS[:STORED])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


@pytest.fixture
def disk(failing: FailingDisk, tmp_path: Path) -> Iterator[DiskTier]:
    disk = disk_tier(tmp_path / "s")
    write(disk, range(STORED))
    disk.put_session("kept", b"a session")
    failing.fail(1, is_meta=True)
    yield disk
    disk.close()


def is_refused(disk: DiskTier) -> bool:
    """By LMDB itself, not by us."""
    environment = disk._file._env
    assert environment is not None
    try:
        environment.begin().abort()
    except lmdb.PanicError:
        return True
    return False


def finish(disk: DiskTier, writing: Future[None]) -> None:
    """The failed commit is reported and not stored; the next one is."""
    with pytest.raises(StorageFullError, match=r"Input/output error\); what was stored before is intact"):
        writing.result(PATIENCE_S)
    assert not disk.contains(KEYS[LATE])
    write(disk, range(LATE, LATE + 1))
    assert disk.contains(KEYS[LATE])
    disk.check_integrity()


@pytest.mark.parametrize("read", [pages, lookups, records])
def test_the_reader_comes_before_the_writer_has_opened_the_file_again(
    disk: DiskTier, failing: FailingDisk, read: Callable[[DiskTier], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_failed, may_open = threading.Event(), threading.Event()
    really_failed = LmdbFile._failed

    def wait_and_open(file: LmdbFile, error: Exception) -> str:
        has_failed.set()
        assert may_open.wait(PATIENCE_S)
        return really_failed(file, error)

    monkeypatch.setattr(LmdbFile, "_failed", wait_and_open)
    opened = failing.num_opened
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write, disk, range(LATE, LATE + 1))
        try:
            assert has_failed.wait(PATIENCE_S)
            assert is_refused(disk)
            read(disk)
            assert failing.num_opened == opened + 1
        finally:
            may_open.set()
        finish(disk, writing)


def test_the_reader_was_refused_and_the_writer_opens_the_file_first(
    disk: DiskTier, failing: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the writer has opened is not closed again by a reader that gives up what was there before."""
    has_failed, was_refused, is_open = threading.Event(), threading.Event(), threading.Event()
    really_failed, really_give_up = LmdbFile._failed, LmdbFile._give_up

    def open_after_the_refusal(file: LmdbFile, error: Exception) -> str:
        has_failed.set()
        assert was_refused.wait(PATIENCE_S)
        try:
            return really_failed(file, error)
        finally:
            is_open.set()

    def give_up_late(file: LmdbFile, environment: lmdb.Environment | None) -> None:
        was_refused.set()
        assert is_open.wait(PATIENCE_S)
        really_give_up(file, environment)

    monkeypatch.setattr(LmdbFile, "_failed", open_after_the_refusal)
    monkeypatch.setattr(LmdbFile, "_give_up", give_up_late)
    opened = failing.num_opened
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(write, disk, range(LATE, LATE + 1))
        try:
            assert has_failed.wait(PATIENCE_S)
            pages(disk)
            assert failing.num_opened == opened + 1
        finally:
            was_refused.set()
        finish(disk, writing)
