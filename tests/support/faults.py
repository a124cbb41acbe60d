"""How much of the fault tests to run, and faults to run under."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lmdb
import pytest

NOBODY = 65534


def num_faults(*, default: int, share: float = 1.0) -> int:
    """Trials of a loop: `default` in the ordinary suite, `share` of FAULTS where that is set (`make faults`)."""
    wanted = os.environ.get("FAULTS")
    return default if wanted is None else max(1, int(share * int(wanted)))


def is_long_run() -> bool:
    return "FAULTS" in os.environ


@contextmanager
def no_file_may_grow(size: int) -> Iterator[None]:
    """As on a full disk: in this process writes beyond `size` bytes of any file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Where modes mean nothing because root runs the tests, become a user for whom they do."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class FailingDisk:
    """LMDB environments whose commits can be made to fail: the seam at which a disk's errors arrive.

    As LMDB does, a failed write of a meta page makes every later call fail until the file is opened again.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self.is_meta = False
        self.num_opened = 0
        really_open = lmdb.open

        def open_failing(*arguments: Any, **options: Any) -> _Environment:
            self.num_opened += 1
            return _Environment(self, really_open(*arguments, **options))

        monkeypatch.setattr("stratakv.storage.disk.lmdb_file.lmdb.open", open_failing)

    def fail(self, commits: int, *, is_meta: bool = False) -> None:
        self.failures, self.is_meta = commits, is_meta


class _Environment:
    def __init__(self, disk: FailingDisk, real: Any) -> None:
        self._disk, self._real = disk, real
        self.panicked = False

    def begin(self, *arguments: Any, write: bool = False, **options: Any) -> Any:
        if self.panicked:
            raise lmdb.PanicError("mdb_txn_begin")
        real = self._real.begin(*arguments, write=write, **options)
        return _Transaction(self, real) if write else real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Transaction:
    def __init__(self, environment: _Environment, real: Any) -> None:
        self._environment, self._real = environment, real

    def commit(self) -> None:
        disk = self._environment._disk
        if disk.failures:
            disk.failures -= 1
            self._environment.panicked = disk.is_meta
            self._real.abort()
            raise lmdb.Error("mdb_txn_commit: Input/output error")
        self._real.commit()

    def __enter__(self) -> _Transaction:
        self._real.__enter__()
        return self

    def __exit__(self, *details: Any) -> Any:
        return self._real.__exit__(*details)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
