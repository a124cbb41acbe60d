"""Sessions in the records of one fingerprint: whole records under a name, each with a version.

A session's version is the checksum that its record carries. It tells who saves whether what is replaced is what was
last seen there: compared and written in one transaction, so of two processes that save under one name the second is
told.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import lmdb

from ..errors import SessionChangedError, StorageFullError, StoreUnavailableError
from ..page import CHAIN_BYTES
from . import record
from .lmdb_file import SESSIONS, USES, LmdbFile
from .reserve import with_reserve
from .session_name import session_name
from .stored_records import StoredRecords

logger = logging.getLogger(__name__)

_SECONDS = struct.Struct("<d")


class SessionShelf:
    """The sessions of a `DiskTier`."""

    folder: Path
    fingerprint: bytes
    _file: LmdbFile
    _records: StoredRecords

    def reads_codecs(self, codes: Iterable[int]) -> None:
        """Treat pages in other codecs than these as if they were not there."""
        self._records.known = record.beginnings(codes)

    def check_before_writing(self, check: Callable[[], None]) -> None:
        """Call `check` before every write: it raises StorageFullError if what is computed now must not be stored."""
        self._records.check = check

    def put_session(self, name: str, payload: bytes, only_over: Collection[bytes] | None = None) -> bytes:
        """Store a session under `name`. Returns its version, which holds until somebody stores something else there.

        Args:
            only_over: versions that it may replace; that there is none is always right. None: any. Compared and
                written in one transaction.

        Raises:
            SessionChangedError: another version is there. StorageFullError. Either way nothing changed.
        """
        packed = record.pack(record.SESSION, self.fingerprint, b"", payload)

        def compare(transaction: lmdb.Transaction) -> None:
            found = self._records.checksum_in(transaction, SESSIONS, name.encode())
            if only_over is not None and found is not None and found not in only_over:
                raise SessionChangedError(f"session {name!r} is another one by now")

        self._records.write(SESSIONS, [(name.encode(), packed)], first=compare)
        return record.checksum(packed)

    def version_of(self, payload: bytes) -> bytes:
        """The version that a session with this payload has, or would have."""
        return record.checksum(record.pack(record.SESSION, self.fingerprint, b"", payload))

    def session_version(self, name: str) -> bytes | None:
        """The version stored under `name`, sound or damaged; None if there is nothing."""
        return self._records.checksum(SESSIONS, name.encode())

    def session_at(self, key: bytes) -> bytes | None:
        """The payload of the session under a record's key, read as by `get_session`."""
        return self._records.get(SESSIONS, key, record.SESSION, b"")

    def get_session(self, name: str) -> bytes | None:
        """The session's payload, None if there is none. Raises RecordError if it is damaged, or LaterVersionError."""
        found = self.get_session_version(name)
        return None if found is None else found[1]

    def get_session_version(self, name: str) -> tuple[bytes, bytes] | None:
        """Version and payload of a session as they were at one moment; None if there is none. Raises RecordError."""
        return self._records.get_version(SESSIONS, name.encode(), record.SESSION, b"")

    def unverified_session(self, name: str) -> bytes:
        """The payload of a session that is damaged, as it stands; empty if there is none."""
        return self._records.unverified(SESSIONS, name.encode())

    def delete_session(self, name: str) -> bool:
        """Delete a session, whichever version wrote it. Returns True if there was one. Raises StorageFullError."""
        keys = [name.encode()]
        existed = with_reserve(self.folder, lambda: self._records.delete(SESSIONS, keys, also_later=True) == 1)
        if existed:
            self._records.delete(USES, [_used_key(name)])
        return existed

    def session_names(self) -> list[str]:
        """The names of all sessions, in order. Records under keys that are no names are left out, which the log
        says."""
        names = [session_name(key) for key in self._records.keys(SESSIONS)]
        if None in names:
            logger.warning(
                "%s: %d session records have no name; `stratakv sessions gc` removes them",
                self.folder, names.count(None),
            )  # fmt: skip
        return [name for name in names if name is not None]

    def nameless_sessions(self) -> list[bytes]:
        """The keys of session records that no session can have: they come from damage, or from another program."""
        return [key for key in self._records.keys(SESSIONS) if session_name(key) is None]

    def delete_nameless(self, spare: Collection[bytes] = ()) -> int:
        """Delete all nameless session records but those under the keys in `spare`. Returns how many were deleted."""
        keys = [key for key in self.nameless_sessions() if key not in spare]
        return self._records.delete(SESSIONS, keys) if keys else 0

    def session_used(self, name: str) -> None:
        """Remember that the session was loaded now, if that can be written."""
        try:
            with self._records.writing() as transaction:
                transaction.put(_used_key(name), _SECONDS.pack(time.time()), db=self._file.handle(USES))
        except StorageFullError as error:
            logger.info("the use of session %r is not remembered: %s", name, error)

    def session_used_at(self, name: str) -> float | None:
        """The time when the session was last loaded, in seconds since 1970; None if no loading is known."""
        try:
            with self._file.reading() as transaction:
                row = transaction.get(_used_key(name), db=self._file.handle(USES))
                return _SECONDS.unpack(row)[0] if row is not None and len(row) == _SECONDS.size else None
        except lmdb.Error as error:
            raise StoreUnavailableError(f"{self.folder} is damaged ({error})") from error


def _used_key(name: str) -> bytes:
    """The key under which a session's last use is stored. It never has the length of a chain."""
    key = b"session " + name.encode()
    return key if len(key) != CHAIN_BYTES else key + b"\0"
