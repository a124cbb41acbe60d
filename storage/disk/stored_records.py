"""Records in the databases of one LMDB file, verified when read, under a byte cap when written.

Invariants  (1) what is returned was written here under that key and fingerprint, or RecordError says what is wrong
            (2) live records never outgrow `cap_bytes`, nor does the file, unless another process has a larger cap.
                Before a write fails for that, `grow` is asked to make it larger
            (3) a part of the cap is kept free: deleting, too, needs room to rewrite LMDB's tree
            (4) a record of a later version is never replaced: it is as if it were not there, and its key is taken.
                So is a page of an unknown codec, but that gives way to the same page in one that every version reads
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb

from ..errors import LaterVersionError, RecordError, StorageFullError, StoreUnavailableError
from . import pieces, record
from .lmdb_file import DATABASES, PAGES, SESSIONS, LmdbFile

logger = logging.getLogger(__name__)

_KEYS_PER_READ = 4096
_FIXED_PAGES = 3  # two meta pages, and the root that names the databases


class StoredRecords:
    """The records of one fingerprint in `file`. `folder` is for messages."""

    def __init__(self, file: LmdbFile, folder: Path, cap_bytes: int, fingerprint: bytes) -> None:
        self.file, self.folder, self.cap_bytes, self.fingerprint = file, folder, cap_bytes, fingerprint
        self.grow: Callable[[int], bool] = lambda needed: False
        """Makes `cap_bytes` larger by so many bytes; returns False if it cannot."""
        self.why_full: Callable[[], str] = lambda: (
            f"cap {self.cap_bytes} bytes; raise disk_gb or remove sessions with `stratakv sessions rm`"
        )
        """Returns the sum and what would help, for the message of StorageFullError."""
        self.known = record.beginnings()
        """The first bytes of all records that can be read here."""
        self.check: Callable[[], None] = lambda: None
        """Called before every write: raises StorageFullError if what is computed now must not be stored."""

    def has(self, database: str, key: bytes) -> bool:
        """True if there is a record that this version can read. False, too, where the tree is too damaged to tell."""
        try:
            with self.file.reading() as transaction:
                return self.is_readable(transaction, database, key)
        except (StoreUnavailableError, lmdb.Error) as error:
            logger.warning("%s: record %s cannot be looked up (%s)", self.folder, key.hex(), error)
            return False

    def is_readable(self, transaction: lmdb.Transaction, database: str, key: bytes) -> bool:
        """True if there is a record, damaged or not, that no later version wrote."""
        buffer = transaction.get(key, db=self.file.handle(database))
        if buffer is None or bytes(buffer[:8]) in self.known:  # asked of every page that may be there
            return buffer is not None
        whole = pieces.get(self.file, transaction, database, key)
        return whole is not None and not record.later_field(whole, self.known)

    def _is_later(self, transaction: lmdb.Transaction, database: str, key: bytes) -> bool:
        buffer = pieces.get(self.file, transaction, database, key)
        return buffer is not None and record.later_field(buffer, self.known) == "version"

    def get(self, database: str, name: bytes, kind: int, key: bytes) -> bytes | None:
        found = self.get_version(database, name, kind, key)
        return None if found is None else found[1]

    def get_version(self, database: str, name: bytes, kind: int, key: bytes) -> tuple[bytes, bytes] | None:
        """The record's checksum and payload, read as by `get`; None if there is no record."""
        try:
            with self.file.reading() as transaction:
                buffer = pieces.get(self.file, transaction, database, name)
                if buffer is None:
                    return None
                payload = bytes(record.unpack(buffer, kind, self.fingerprint, key).payload)
                return record.checksum(buffer), payload
        except (StoreUnavailableError, lmdb.Error) as error:
            raise RecordError(str(error)) from error

    def unverified(self, database: str, key: bytes) -> bytes:
        """A record's payload as it stands, damaged or not; empty if there is none."""
        try:
            with self.file.reading() as transaction:
                return record.unverified(pieces.get(self.file, transaction, database, key) or b"")
        except (StoreUnavailableError, lmdb.Error):
            return b""

    def whole(self, database: str, key: bytes, kind: int) -> record.Record | None:
        """A record that fits in one piece, copied out of LMDB's memory; None if there is none. Raises RecordError."""
        try:
            with self.file.reading() as transaction:
                buffer = transaction.get(key, db=self.file.handle(database))
                return None if buffer is None else record.unpack(bytes(buffer), kind, self.fingerprint, key)
        except (StoreUnavailableError, lmdb.Error) as error:
            raise RecordError(str(error)) from error

    def checksum(self, database: str, name: bytes) -> bytes | None:
        """The checksum that the record carries, right or wrong; None if there is no record."""
        try:
            with self.file.reading() as transaction:
                return self.checksum_in(transaction, database, name)
        except lmdb.Error as error:
            raise StoreUnavailableError(f"{self.folder} is damaged ({error})") from error

    def checksum_in(self, transaction: lmdb.Transaction, database: str, name: bytes) -> bytes | None:
        first = transaction.get(name, db=self.file.handle(database))
        return None if first is None else record.checksum(first)

    def keys(self, database: str) -> Iterator[bytes]:
        for key, _ in self.sizes(database):
            yield key

    def sizes(self, database: str) -> Iterator[tuple[bytes, int]]:
        """Yield keys in order, with the bytes of their records. Uses many short transactions: a long one would keep
        LMDB from using freed pages again."""
        start = b""
        while True:
            try:
                with self.file.reading() as transaction:
                    cursor = transaction.cursor(self.file.handle(database))
                    rows = cursor.iternext() if cursor.set_range(start) else iter(())
                    found = [(bytes(key), len(value)) for key, value in islice(rows, _KEYS_PER_READ)]
            except lmdb.Error as error:
                raise StoreUnavailableError(f"{self.folder} is damaged ({error})") from error
            yield from found
            if len(found) < _KEYS_PER_READ:
                return
            start = found[-1][0] + b"\0"

    def damaged(self, database: str, kind: int) -> Iterator[tuple[bytes, str]]:
        for key in self.keys(database):
            try:
                self.get(database, key, kind, key)
            except LaterVersionError:
                continue
            except RecordError as error:
                yield key, str(error)

    def num_later(self, database: str) -> int:
        """Count the records that a later version wrote."""
        count = 0
        for key in self.keys(database):
            with self.file.reading() as transaction:
                buffer = pieces.get(self.file, transaction, database, key)
                count += buffer is not None and bool(record.later_field(buffer, self.known))
        return count

    def write(
        self, database: str, items: list[tuple[bytes, bytes]], then: Callable[[lmdb.Transaction], None] | None = None,
        first: Callable[[lmdb.Transaction], None] | None = None,
    ) -> set[bytes]:  # fmt: skip
        """Write `items` in one durable transaction. `first` may object before it by raising, and `then` may write more.
        Raises StorageFullError. If anything is raised, nothing has changed.

        Returns the keys that hold what a later version wrote. That stays, but for sessions: about them `first` decides.
        """
        taken: set[bytes] = set()

        def put(transaction: lmdb.Transaction) -> None:
            taken.clear()
            for key, value in items:
                if database != SESSIONS and self._is_later(transaction, database, key):
                    taken.add(key)
                elif database == PAGES:
                    transaction.put(key, value, db=self.file.handle(PAGES))
                else:
                    pieces.put(self.file, transaction, database, key, value)
            if then is not None:
                then(transaction)

        needed = sum((len(value) // self.file.page_bytes + 2) * self.file.page_bytes for _, value in items)
        self.write_in_room(needed, put, first)
        return taken

    def write_in_room(
        self, needed: int, put: Callable[[lmdb.Transaction], None],
        first: Callable[[lmdb.Transaction], None] | None = None,
    ) -> None:  # fmt: skip
        """Call `put` in one durable transaction, if there is room for `needed` bytes. Raises StorageFullError."""
        self.check()
        while True:
            try:
                with self.writing() as transaction:
                    if first is not None:
                        first(transaction)
                    self._require_room(transaction, needed)
                    put(transaction)
                return
            except StorageFullError as error:
                if not (error.is_at_cap and self.grow(needed)):
                    raise

    def _require_room(self, transaction: lmdb.Transaction, needed: int) -> None:
        if self.used_bytes(transaction) + needed > self.cap_bytes - self.kept_free:
            raise lmdb.MapFullError("no room is left beside what LMDB needs to free pages")

    def delete(self, database: str, keys: list[bytes], *, also_later: bool = False) -> int:
        """Delete records, except those of a later version unless `also_later`. Returns how many were deleted."""
        with self.writing() as transaction:
            return sum(
                pieces.delete(self.file, transaction, database, key)
                for key in keys
                if also_later or not self._is_later(transaction, database, key)
            )

    @contextmanager
    def writing(self) -> Iterator[lmdb.Transaction]:
        """A write transaction, durable at the end of the block. Raises StorageFullError; then nothing has changed."""
        try:
            with self.file.writing() as transaction:
                yield transaction
        except lmdb.MapFullError as error:
            raise StorageFullError(f"disk tier {self.folder} is full: {self.why_full()}", is_at_cap=True) from error
        self.require_cap()

    def require_cap(self) -> None:
        """Raise AssertionError where the file has outgrown the cap, or the larger one that another process gave it."""
        size, limit = self.file.size(), max(self.cap_bytes, self.file.map_bytes)
        assert size <= limit, f"disk: file has {size} bytes, {limit} is its cap"

    def used_bytes(self, transaction: lmdb.Transaction) -> int:
        stats = [transaction.stat(self.file.handle(database)) for database in DATABASES]
        live = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return (live + _FIXED_PAGES) * self.file.page_bytes

    @property
    def kept_free(self) -> int:
        return self.cap_bytes // 256 + (32 - _FIXED_PAGES) * self.file.page_bytes
