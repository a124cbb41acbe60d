"""Errors travel between processes, and their messages can always be printed."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from pathlib import Path

import pytest

from stratakv.storage import errors
from stratakv.storage.errors import (
    CorruptPageError,
    NoRoomError,
    StorageFullError,
    StoreUnavailableError,
    StratakvError,
    UnknownPagesError,
    is_full,
    store_unavailable,
)


@pytest.mark.parametrize(
    "error", [CorruptPageError("lost", [3, 5]), StorageFullError("full", is_at_cap=True), UnknownPagesError("kept")]
)
def test_a_copy_has_its_fields(error: StratakvError) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_message_can_be_encoded_whatever_a_file_is_called() -> None:
    assert str(StratakvError(os.fsdecode(b"caf\xe9: not there"))) == r"caf\xe9: not there"


def test_one_root() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    assert all(issubclass(kind, StratakvError) for kind in kinds)


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_full_disk_is_told_by_its_words(number: int, full: bool, tmp_path: Path) -> None:
    error = RuntimeError(f"mdb_put: {os.strerror(number)}")
    assert is_full(tmp_path, error) is full
    assert type(store_unavailable(tmp_path, error)) is (NoRoomError if full else StoreUnavailableError)


@pytest.mark.parametrize(("free", "full"), [(1000, True), (1 << 30, False)])
def test_an_input_error_on_the_last_free_bytes_is_one(
    free: int, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        pass

    Usage.free = free
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda _: Usage)
    assert is_full(tmp_path, OSError(os.strerror(errno.EIO))) is full
    assert not is_full(tmp_path / "not there", OSError(os.strerror(errno.EIO)))
