"""The disk tier: records in one LMDB environment per model fingerprint.

Invariants  (1) a record is visible only after its transaction committed
            (2) every read is verified (`record.unpack`); damage is an error, never data
            (3) the file never outgrows `cap_bytes`: it is LMDB's map size
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
from collections.abc import Callable, Iterable
from pathlib import Path

import lmdb
import numpy as np

from . import record
from .codecs import Codec
from .errors import RecordError, StorageFullError, StoreUnavailableError

logger = logging.getLogger(__name__)

_MIN_MAP_BYTES = 1 << 20
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

    def __init__(
        self, folder: Path, cap_bytes: int, fingerprint: bytes, description: dict[str, object]
    ) -> None:
        self.folder = folder
        self.cap_bytes = max(cap_bytes, _MIN_MAP_BYTES)
        self.fingerprint = fingerprint
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_private(folder / "config.json", json.dumps(description, indent=2) + "\n")
            self._env = _open_environment(folder, self.cap_bytes)
        except (OSError, lmdb.Error) as error:
            raise StoreUnavailableError(
                f"store folder {folder} cannot be used ({error}); choose another with --kv-dir or path="
            ) from error
        self._pages = self._env.open_db(b"pages")
        self._sessions = self._env.open_db(b"sessions")
        self._states = self._env.open_db(b"states")
        self._env.reader_check()

    # Pages

    def contains(self, key: bytes) -> bool:
        with self._env.begin(db=self._pages, buffers=True) as transaction:
            return transaction.get(key) is not None

    def num_leading(self, chains: list[bytes], keys_of: Callable[[bytes], Iterable[bytes]]) -> int:
        """How many leading `chains` have every one of their keys stored."""
        with self._env.begin(db=self._pages, buffers=True) as transaction:
            for count, chain in enumerate(chains):
                if any(transaction.get(key) is None for key in keys_of(chain)):
                    return count
        return len(chains)

    def read_pages(
        self,
        keys: list[bytes],
        tokens: np.ndarray,
        out: Callable[[int], np.ndarray],
        codecs: dict[int, Codec],
    ) -> dict[int, str]:
        """Read and verify pages; `out(i)` is the buffer for key i. Returns {i: what is wrong}."""
        failures: dict[int, str] = {}
        with self._env.begin(db=self._pages, buffers=True) as transaction:
            for i, key in enumerate(keys):
                buffer = transaction.get(key)
                if buffer is None:
                    failures[i] = "the record is missing"
                    continue
                try:
                    self._decode(buffer, key, tokens[i], out(i), codecs)
                except RecordError as error:
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
        codecs[found.codec].decode(found.payload, out)

    def write_pages(self, records: list[tuple[bytes, bytes]]) -> None:
        """One durable transaction. Raises StorageFullError; then none of it is stored."""
        self._write(self._pages, records)

    def delete_pages(self, keys: list[bytes]) -> None:
        with self._env.begin(db=self._pages, write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    # Sessions and states: whole records under a name

    def put_session(self, name: str, payload: bytes) -> None:
        packed = record.pack(record.SESSION, self.fingerprint, b"", payload)
        self._write(self._sessions, [(name.encode(), packed)])

    def get_session(self, name: str) -> bytes | None:
        """The session's payload, None if there is none. Raises RecordError if it is damaged."""
        return self._get(self._sessions, name.encode(), record.SESSION, b"")

    def delete_session(self, name: str) -> bool:
        with self._env.begin(db=self._sessions, write=True) as transaction:
            return bool(transaction.delete(name.encode()))

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

    def _get(self, database: object, name: bytes, kind: int, key: bytes) -> bytes | None:
        with self._env.begin(db=database, buffers=True) as transaction:
            buffer = transaction.get(name)
            if buffer is None:
                return None
            return bytes(record.unpack(buffer, kind, self.fingerprint, key).payload)

    # Space

    def sweep(self, is_live: Callable[[bytes], bool]) -> int:
        """Delete pages and states for which `is_live(key)` is false; returns how many."""
        removed = 0
        with self._env.begin(write=True) as transaction:
            for database in (self._pages, self._states):
                cursor = transaction.cursor(db=database)
                alive = cursor.first()
                while alive:
                    if is_live(bytes(cursor.key())):
                        alive = cursor.next()
                    else:
                        removed += 1
                        alive = cursor.delete() and bool(cursor.key())
        return removed

    @property
    def used_bytes(self) -> int:
        """Bytes of live LMDB pages."""
        page_bytes = self._env.stat()["psize"]
        with self._env.begin() as transaction:
            stats = [transaction.stat(db) for db in (self._pages, self._sessions, self._states)]
        kinds = ("branch_pages", "leaf_pages", "overflow_pages")
        return sum(stat[kind] for stat in stats for kind in kinds) * page_bytes

    @property
    def num_pages(self) -> int:
        with self._env.begin() as transaction:
            return int(transaction.stat(self._pages)["entries"])

    def check_integrity(self) -> None:
        size = (self.folder / "data.mdb").stat().st_size
        needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        assert needed <= size, f"disk: file has {size} bytes, its pages need {needed}"
        assert size <= self.cap_bytes, f"disk: file has {size} bytes, cap {self.cap_bytes}"

    def close(self) -> None:
        _close_environment(self.folder)

    def _write(self, database: object, items: list[tuple[bytes, bytes]]) -> None:
        try:
            with self._env.begin(db=database, write=True) as transaction:
                for key, value in items:
                    transaction.put(key, value)
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


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _open_environment(folder: Path, cap_bytes: int) -> lmdb.Environment:
    """LMDB forbids opening one file twice in a process, so environments are shared and counted."""
    name = os.path.realpath(folder)
    with _OPEN_LOCK:
        if name in _OPEN:
            environment, users = _OPEN[name]
            _OPEN[name] = (environment, users + 1)
            return environment
        environment = lmdb.open(
            name, map_size=cap_bytes, max_dbs=3, mode=0o600, readahead=False, meminit=False
        )
        try:
            _refuse_truncated(environment, folder)
        except OSError:
            environment.close()
            raise
        _OPEN[name] = (environment, 1)
        return environment


def _refuse_truncated(environment: lmdb.Environment, folder: Path) -> None:
    """A file shorter than its meta page claims would kill the process with SIGBUS on first touch."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (folder / "data.mdb").stat().st_size
    if size < needed:
        raise OSError(f"data.mdb has {size} bytes but its header promises {needed}: it was truncated")


def _close_environment(folder: Path) -> None:
    name = os.path.realpath(folder)
    with _OPEN_LOCK:
        environment, users = _OPEN.pop(name)
        if users > 1:
            _OPEN[name] = (environment, users - 1)
        else:
            environment.close()
