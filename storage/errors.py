"""The errors of the store: one class for each thing that the caller would do differently."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from .files.file_names import as_text

_LITTLE_BYTES = 1 << 20
"""A file system with fewer free bytes than this has no room for a store."""


class StratakvError(Exception):
    """Base of all errors of ours, here and above. They can be copied and pickled, with their fields, and their messages
    can be printed, whatever the files in them are called."""

    def __str__(self) -> str:
        return as_text(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[StratakvError], args: tuple[Any, ...], fields: dict[str, Any]) -> StratakvError:
    """The same error, without its constructor, which may ask for more than the message."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class StorageError(StratakvError):
    """Base of all errors raised by `stratakv.storage`."""


class CapacityError(StorageError):
    """A tier is full and nothing in it may be evicted. Names the tier and its cap."""


class StorageFullError(StorageError):
    """The disk tier took nothing of a write: its byte cap or the file system is full, or the write failed."""

    def __init__(self, message: str, *, is_at_cap: bool = False) -> None:
        super().__init__(message)
        self.is_at_cap = is_at_cap
        """True if removing records would make room; False if the file system itself refuses."""


class UnknownPagesError(StorageFullError):
    """No room can be made, since this program cannot tell which pages a saved session needs. The message names the
    session."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_at_cap=True)


class CorruptPageError(StorageError):
    """Stored pages failed verification or vanished; `pages` are their page ids."""

    def __init__(self, message: str, pages: list[int]) -> None:
        super().__init__(message)
        self.pages = pages


class RecordError(StorageError):
    """A record's bytes are damaged or not what was asked for. Names the field."""


class LaterVersionError(RecordError):
    """A later version of stratakv wrote the record. It is not read, and left as it is. Names the field."""


class SessionChangedError(StorageError):
    """The session that was to be replaced is another one by now; nothing was written."""


class StoreUnavailableError(StorageError):
    """The store folder cannot be created, written or locked, or its data file is damaged."""


class LaterStoreError(StoreUnavailableError):
    """A later version wrote the store's data file. It is not read, and left as it is."""


class NoRoomError(StoreUnavailableError):
    """The folder cannot be opened because the file system, or the user's share of it, has no room for what opening
    takes."""


def store_unavailable(folder: Path, error: Exception) -> StoreUnavailableError:
    """The error to raise where `error` kept a store folder from being opened."""
    kind = NoRoomError if is_full(folder, error) else StoreUnavailableError
    return kind(f"store folder {folder} cannot be used ({error}); choose another (path=)")


def is_full(folder: Path, error: Exception) -> bool:
    """True if `error` says that there is no room. LMDB's errors carry no number, only a text. Where the last free bytes
    take only part of a write, LMDB reports an input/output error."""
    if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
        return True
    return os.strerror(errno.EIO) in str(error) and folder.is_dir() and shutil.disk_usage(folder).free < _LITTLE_BYTES


class ForkedError(StorageError):
    """A store was used in a child of the process that opened it."""


class ClosedError(StorageError):
    """An operation on a store that was closed."""
