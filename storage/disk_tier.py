"""The disk tier: records in one LMDB environment per model fingerprint.

Invariants  (1) a record is visible only after its transaction committed
            (2) every read is verified (`record.unpack`); damage is an error, never data
            (3) the file never outgrows `cap_bytes`: it is LMDB's map size
            (4) a part of the cap is kept free: deleting, too, needs room to rewrite LMDB's tree
            (5) the file is never shorter than its header says: a shorter one was truncated
Crash       process kill: every committed record survives, others vanish whole; nothing to repair.
            Power loss: the same, because commits are synchronous (LMDB's default).
Threads     read anywhere; write transactions are serialised by LMDB. Never used across fork.
Folder      `<store>/<fingerprint>/`: private to the user (0700), a readable `config.json` beside
            `data.mdb`. Not for network file systems.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from . import record
from .codecs import Codec
from .errors import RecordError, StorageFullError, StoreUnavailableError

logger = logging.getLogger(__name__)

_MIN_MAP_BYTES = 1 << 20
_DATABASES = (b"pages", b"sessions", b"states")
_OPEN: dict[str, tuple[lmdb.Environment, int]] = {}
_OPEN_LOCK = threading.Lock()


class DiskTier:
    """Pages, session records and states of one model.

    Args:
        folder: created if missing, with mode 0700.
        fingerprint: 16 bytes naming model, dtype, RoPE and page layout.
        description: written to `config.json` for people; never read back.

    Raises:
        StoreUnavailableError: the folder cannot be created or written, or its file is damaged.
    """

    name = "disk"

    def __init__(self, folder: Path, cap_bytes: int, fingerprint: bytes, description: dict[str, object]) -> None:
        self.folder = folder
        self.cap_bytes = max(cap_bytes, _MIN_MAP_BYTES)
        self.fingerprint = fingerprint
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_private(folder / "config.json", json.dumps(description, indent=2) + "\n")
            self._name = os.path.realpath(folder)
            self._env = _open_environment(self._name, self.cap_bytes)
            try:
                self._pages, self._sessions, self._states = map(self._env.open_db, _DATABASES)
                self._env.reader_check()
            except lmdb.Error:
                _close_environment(self._name)
                raise
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailableError(
                f"store folder {folder} cannot be used ({error}); choose another with --kv-dir or path="
            ) from error
        self.cap_bytes = self._env.info()["map_size"]

    # Pages

    def contains(self, key: bytes) -> bool:
        with self._env.begin(db=self._pages, buffers=True) as transaction:
            return transaction.get(key) is not None

    def num_leading(self, chains: list[bytes], keys_of: Callable[[bytes], Iterable[bytes]]) -> int:
        """How many leading `chains` have every one of their keys stored."""
        count = 0
        try:
            with self._env.begin(db=self._pages, buffers=True) as transaction:
                for chain in chains:
                    if any(transaction.get(key) is None for key in keys_of(chain)):
                        break
                    count += 1
        except lmdb.Error as error:
            logger.warning("%s is damaged (%s): %d stored pages were found before that", self.folder, error, count)
        return count

    def read_pages(
        self,
        keys: list[bytes],
        tokens: np.ndarray,
        out: Callable[[int], np.ndarray],
        codecs: dict[int, Codec],
    ) -> dict[int, str]:
        """Read and verify pages; `out(i)` is the buffer for key i. Returns {i: what is wrong}."""
        failures: dict[int, str] = {}
        for i, key in enumerate(keys):
            try:
                with self._env.begin(db=self._pages, buffers=True) as transaction:
                    buffer = transaction.get(key)
                    if buffer is None:
                        raise RecordError("the record is missing")
                    self._decode(buffer, key, tokens[i], out(i), codecs)
            except (RecordError, lmdb.Error) as error:
                failures[i] = str(error)
        return failures

    def _decode(
        self, buffer: memoryview, key: bytes, tokens: np.ndarray, out: np.ndarray, codecs: dict[int, Codec]
    ) -> None:
        found = record.unpack(buffer, record.PAGE, self.fingerprint, key)
        if not np.array_equal(found.tokens, tokens):
            raise RecordError("tokens: the record holds other tokens under the same hash")
        if found.codec not in codecs:
            raise RecordError(f"codec: {found.codec} is unknown to this program")
        if found.raw_bytes != out.nbytes:
            raise RecordError(f"raw bytes: {found.raw_bytes}, a page has {out.nbytes}")
        codecs[found.codec].decode(found.payload, out)

    def write_pages(self, records: list[tuple[bytes, bytes]]) -> None:
        """One durable transaction. Raises StorageFullError; then none of it is stored."""
        self._write(self._pages, records)

    def delete_pages(self, keys: list[bytes]) -> None:
        self._delete(self._pages, keys)

    # Sessions and states: whole records under a name

    def put_session(self, name: str, payload: bytes) -> None:
        packed = record.pack(record.SESSION, self.fingerprint, b"", payload)
        self._write(self._sessions, [(name.encode(), packed)])

    def get_session(self, name: str) -> bytes | None:
        """The session's payload, None if there is none. Raises RecordError if it is damaged."""
        return self._get(self._sessions, name.encode(), record.SESSION, b"")

    def delete_session(self, name: str) -> bool:
        return self._delete(self._sessions, [name.encode()]) == 1

    def session_names(self) -> list[str]:
        with self._env.begin(db=self._sessions) as transaction:
            return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]

    def put_state(self, chain: bytes, payload: bytes) -> None:
        packed = record.pack(record.STATE, self.fingerprint, chain, payload)
        self._write(self._states, [(chain, packed)])

    def get_state(self, chain: bytes) -> bytes | None:
        return self._get(self._states, chain, record.STATE, chain)

    def has_state(self, chain: bytes) -> bool:
        with self._env.begin(db=self._states, buffers=True) as transaction:
            return transaction.get(chain) is not None

    def _get(self, database: Any, name: bytes, kind: int, key: bytes) -> bytes | None:
        try:
            with self._env.begin(db=database, buffers=True) as transaction:
                buffer = transaction.get(name)
                if buffer is None:
                    return None
                return bytes(record.unpack(buffer, kind, self.fingerprint, key).payload)
        except lmdb.Error as error:
            raise RecordError(str(error)) from error

    # Space

    def sweep(self, is_live: Callable[[bytes], bool]) -> int:
        """Delete pages and states for which `is_live(key)` is false; returns how many.

        In small transactions: each must rewrite its part of the tree in the room that is kept free.
        """
        removed = 0
        batch = self._kept_free // (4 * self._env.stat()["psize"])
        for database in (self._pages, self._states):
            with self._env.begin(db=database) as transaction:
                dead = [key for key in transaction.cursor().iternext(values=False) if not is_live(key)]
            for start in range(0, len(dead), batch):
                removed += self._delete(database, dead[start : start + batch])
        if removed:
            # NOTE: LMDB reuses what a transaction freed only in the next but one, and counts no empty ones.
            with self._writing() as transaction:
                transaction.put(b"sweep", removed.to_bytes(8, "little"))
        return removed

    @property
    def used_bytes(self) -> int:
        """Bytes of live LMDB pages."""
        page_bytes = self._env.stat()["psize"]
        with self._env.begin() as transaction:
            stats = [transaction.stat(db) for db in (self._pages, self._sessions, self._states)]
        return sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats) * page_bytes

    @property
    def num_pages(self) -> int:
        with self._env.begin() as transaction:
            return int(transaction.stat(self._pages)["entries"])

    def check_integrity(self) -> None:
        size = os.stat(os.path.join(self._name, "data.mdb")).st_size
        missing = _missing_bytes(self._env, self._name)
        assert not missing, f"disk: file has {size} bytes, its pages need {missing} more"
        assert size <= self.cap_bytes, f"disk: file has {size} bytes, cap {self.cap_bytes}"

    def close(self) -> None:
        _close_environment(self._name)

    def _write(self, database: Any, items: list[tuple[bytes, bytes]]) -> None:
        page_bytes = self._env.stat()["psize"]
        needed = sum((len(value) // page_bytes + 2) * page_bytes for _, value in items)
        with self._writing(database) as transaction:
            if self.used_bytes + needed > self.cap_bytes - self._kept_free:
                raise lmdb.MapFullError("no room is left beside what LMDB needs to free pages")
            for key, value in items:
                transaction.put(key, value)

    def _delete(self, database: Any, keys: list[bytes]) -> int:
        with self._writing(database) as transaction:
            return sum(transaction.delete(key) for key in keys)

    @contextmanager
    def _writing(self, database: Any = None) -> Iterator[lmdb.Transaction]:
        """A write transaction, durable at the end. Raises StorageFullError; then nothing changed."""
        try:
            with self._env.begin(db=database, write=True) as transaction:
                yield transaction
        except lmdb.MapFullError as error:
            raise StorageFullError(
                f"disk tier {self.folder} is full: cap {self.cap_bytes} bytes; "
                "raise --disk-kv-gb or remove sessions with `stratakv sessions rm`"
            ) from error
        except lmdb.Error as error:
            free = os.statvfs(self.folder)
            raise StorageFullError(
                f"writing to {self.folder} failed ({error}); "
                f"{free.f_bavail * free.f_frsize} bytes are free on that file system"
            ) from error
        if _missing_bytes(self._env, self._name):
            self._lengthen()

    def _lengthen(self) -> None:
        """LMDB leaves the file's last pages unwritten if they were freed again in the transaction that
        took them. Cover them, or the next start would take the file for a truncated one."""
        with self._env.begin(write=True):  # no other process lengthens the file meanwhile
            missing = _missing_bytes(self._env, self._name)
            if missing:
                with open(os.path.join(self._name, "data.mdb"), "r+b") as file:
                    file.truncate(os.fstat(file.fileno()).st_size + missing)
                    os.fsync(file.fileno())

    @property
    def _kept_free(self) -> int:
        return self.cap_bytes // 256 + 32 * int(self._env.stat()["psize"])


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _open_environment(name: str, cap_bytes: int) -> lmdb.Environment:
    """LMDB forbids opening one file twice in a process, so environments are shared and counted."""
    with _OPEN_LOCK:
        if name in _OPEN:
            environment, users = _OPEN[name]
            _OPEN[name] = (environment, users + 1)
            return environment
        environment = lmdb.open(name, map_size=cap_bytes, max_dbs=3, mode=0o600, readahead=False, meminit=False)
        try:
            _refuse_truncated(environment, name)
        except OSError:
            environment.close()
            raise
        _OPEN[name] = (environment, 1)
        return environment


def _missing_bytes(environment: lmdb.Environment, name: str) -> int:
    """How far the file ends before the last page its header counts."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    return max(0, int(needed) - os.stat(os.path.join(name, "data.mdb")).st_size)


def _refuse_truncated(environment: lmdb.Environment, name: str) -> None:
    """A file shorter than its meta page claims would kill the process with SIGBUS on first touch."""
    missing = _missing_bytes(environment, name)
    if missing:
        raise OSError(f"data.mdb ends {missing} bytes before what its header promises: it was truncated")


def _close_environment(name: str) -> None:
    with _OPEN_LOCK:
        environment, users = _OPEN.pop(name)
        if users > 1:
            _OPEN[name] = (environment, users - 1)
        else:
            environment.close()
