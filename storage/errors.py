"""What can go wrong in the store, one class per thing the caller would do differently."""

from __future__ import annotations

from typing import Any


class StratakvError(Exception):
    """Base of all errors of ours, here and above. They can be copied and pickled, with their fields."""

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
        """Removing records would make room; otherwise it is the file system that refuses."""


class CorruptPageError(StorageError):
    """Stored pages failed verification or vanished; `pages` are their page ids."""

    def __init__(self, message: str, pages: list[int]) -> None:
        super().__init__(message)
        self.pages = pages


class RecordError(StorageError):
    """A record's bytes are damaged or not what was asked for. Names the field."""


class SessionChangedError(StorageError):
    """The session that was to be replaced is another one by now; nothing was written."""


class StoreUnavailableError(StorageError):
    """The store folder cannot be created, written or locked, or its data file is damaged."""


class ForkedError(StorageError):
    """A store was used in a child of the process that opened it."""


class ClosedError(StorageError):
    """An operation on a store that was closed."""
