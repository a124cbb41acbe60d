"""One LMDB data file, opened once per process and shared by every tier on its folder.

Invariants  (1) a transaction is durable when its block ends, or nothing of it is stored
            (2) the file is never shorter than its header says: a shorter one was truncated, and touching
                what it lacks would kill the process
            (3) a file is not read before its tree has been checked, if it is small or its last user died
Map         as large as asked for from the start: address space, neither memory nor disk
            (docs/decisions/0012); under a cap that folders share it ends where the file's share does, and is extended
            when that grows (`share`). Where another process's file has outgrown it, its size is taken over.
            The kernel reads ahead: py-lmdb touches all of a value when it is looked up, and without that each 4 KiB
            would be waited for (docs/decisions/0016)
Failure     after a write that failed for any reason but a full map the file is closed and opened again: LMDB
            may refuse everything until then. What was acknowledged must still be there. If it cannot be
            opened, each use tries again.
Threads     any; changing the map or opening again waits for all transactions (`_Gate`). Do not nest them.
Fork        a child's use raises ForkedError.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb
from lmdb import verify

from ..errors import ForkedError, StorageFullError, StoreUnavailableError
from ..files.nameless import name_file, nameless_file, remove_unfinished
from ..files.private import reserved_file

logger = logging.getLogger(__name__)

PAGES, SESSIONS, STATES, PIECES, USES = "pages", "sessions", "states", "pieces", "uses"
DATABASES = (PAGES, SESSIONS, STATES, PIECES, USES)
_CHECKED_BYTES = 512 << 20
"""A file up to this size has its tree checked whenever its first user opens it, which takes 0.3 s at most."""
_READERS_CHECKED_EVERY = 8
"""Write transactions between two looks for dead readers, whose pages LMDB could not use again."""
_LOCK_BYTES = 8192
"""Bytes of LMDB's table of readers."""
_OPEN: dict[str, LmdbFile] = {}
_OPEN_LOCK = threading.Lock()


class LmdbFile:
    """`data.mdb` of one folder. Get it with `share`, give it back with `release`."""

    def __init__(self, name: str, map_bytes: int) -> None:
        self.name, self._map_bytes = name, map_bytes
        self._pid, self._users = os.getpid(), 0
        self._gate = _Gate()
        self._acknowledged = 0
        self._num_writes = 0
        self._env: lmdb.Environment | None = self._created()

    @classmethod
    def share(cls, folder: Path, map_bytes: int, *, check: bool, is_first: bool) -> LmdbFile:
        """Open a folder's data file, or join those who use it: LMDB forbids opening one file twice in a process.

        Args:
            check: the last user of the file died: check its tree, whatever its size.
            is_first: no other process has it open, so that it may be checked at all.

        Raises OSError or lmdb.Error.
        """
        name = os.path.realpath(folder)
        with _OPEN_LOCK:
            file = _OPEN.get(name)
            if file is not None and file._pid != os.getpid():
                file._close()  # inherited over a fork: of no use here, and in the way of opening the file anew
                file = None
            if file is None:
                file = cls(name, map_bytes)
                try:
                    if is_first:
                        file._remove_copy()
                    if is_first and (check or file.size() <= _CHECKED_BYTES):
                        file._check_tree()
                except BaseException:
                    file._close()
                    raise
                _OPEN[name] = file
            else:
                file.extend(map_bytes)
            file._users += 1
            return file

    def release(self) -> None:
        if self._pid != os.getpid():
            return
        with _OPEN_LOCK:
            self._users -= 1
            if not self._users:
                del _OPEN[self.name]
                self._close()

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction]:
        """A read transaction, which sees a snapshot. What is read from it is LMDB's own memory, gone with the block.
        Its methods raise lmdb.Error; StoreUnavailableError if the file cannot be opened."""
        transaction = self._begin(write=False)
        try:
            yield transaction
        finally:
            transaction.abort()
            self._gate.leave()

    @contextmanager
    def writing(self) -> Iterator[lmdb.Transaction]:
        """A write transaction, durable at the end of the block. If the block raises, nothing of it is stored.

        Raises:
            lmdb.MapFullError: it does not fit in the map.
            StorageFullError: it failed; the file has been opened again.
        """
        try:
            transaction = self._begin(write=True)
            try:
                yield transaction
                self._require_same_file()
                transaction.commit()
            finally:
                transaction.abort()
                self._gate.leave()
            self._written()
        except lmdb.MapFullError:
            raise
        except StoreUnavailableError as error:
            raise StorageFullError(str(error)) from error
        except (lmdb.Error, OSError) as error:
            raise StorageFullError(self._failed(error)) from error

    def handle(self, database: str) -> lmdb._Database:
        return self._databases[database]

    def _begin(self, *, write: bool) -> lmdb.Transaction:
        self.require_process()
        while True:
            if self._env is None:
                self._open_again()
            self._gate.enter()
            environment = self._env
            try:
                if environment is not None:
                    return environment.begin(write=write, buffers=True)
                self._gate.leave()
            except lmdb.PanicError:  # another thread's write has just failed: what is stored can still be read
                self._gate.leave()
                self._give_up(environment)
            except lmdb.MapResizedError:
                self._gate.leave()
                self._resize(0)
            except lmdb.ReadersFullError:
                freed = environment.reader_check() if environment is not None else 0
                self._gate.leave()
                if not freed:
                    raise
            except BaseException:
                self._gate.leave()
                raise

    def _written(self) -> None:
        self._gate.enter()
        try:
            environment = self._env
            if environment is None:
                return
            if _missing_bytes(environment, self.name):
                self._lengthen(environment)
            self._acknowledged = max(self._acknowledged, environment.info()["last_txnid"])
            self._num_writes += 1
            if self._num_writes % _READERS_CHECKED_EVERY == 0:
                environment.reader_check()
        finally:
            self._gate.leave()

    def _lengthen(self, environment: lmdb.Environment) -> None:
        """LMDB leaves the file's last pages unwritten if they were freed again in the transaction that
        took them. Cover them, or the next start would take the file for a truncated one."""
        with environment.begin(write=True):  # no other process lengthens the file meanwhile
            missing = _missing_bytes(environment, self.name)
            if missing:
                with open(self.path, "r+b") as file:
                    file.truncate(os.fstat(file.fileno()).st_size + missing)
                    os.fsync(file.fileno())

    # Opening

    @property
    def path(self) -> str:
        return os.path.join(self.name, "data.mdb")

    def size(self) -> int:
        return os.stat(self.path).st_size

    def missing_bytes(self) -> int:
        """Bytes by which the file ends before the last page that its header counts; 0 in a healthy file."""
        self._gate.enter()
        try:
            assert self._env is not None
            return _missing_bytes(self._env, self.name)
        finally:
            self._gate.leave()

    @property
    def page_bytes(self) -> int:
        """Bytes of one of LMDB's own pages, which are not KV pages."""
        return self._page_bytes

    @property
    def map_bytes(self) -> int:
        return self._map_bytes

    def require_process(self) -> None:
        """Raises ForkedError in any process but the one that opened the file."""
        if os.getpid() != self._pid:
            raise ForkedError(
                f"store {self.name} was opened by process {self._pid} and is used in its child {os.getpid()}; "
                "LMDB does not survive a fork: load the runtime in the child, after the fork"
            )

    def _created(self) -> lmdb.Environment:
        """Open the file, and make it if there is none: whole or not at all, since half a file would pass for damage."""
        is_new = not os.path.exists(self.path)
        try:
            return self._opened(create=True)
        except BaseException:
            if is_new:
                with suppress(FileNotFoundError):
                    os.unlink(self.path)
            raise

    def _opened(self, *, create: bool = False) -> lmdb.Environment:
        if create:
            reserved_file(os.path.join(self.name, "lock.mdb"), _LOCK_BYTES)
        try:
            environment = lmdb.open(
                os.fsencode(self.name), map_size=self._map_bytes, max_dbs=len(DATABASES), create=create, mode=0o600,
                readahead=True, meminit=False,
            )  # fmt: skip
        except lmdb.MemoryError as error:
            raise OSError(
                f"no address space for a map of {self._map_bytes} bytes; lower disk_gb or raise `ulimit -v`"
            ) from error
        try:
            missing = _missing_bytes(environment, self.name)
            if missing:
                raise OSError(f"data.mdb ends {missing} bytes before what its header promises: it was truncated")
            last = environment.info()["last_txnid"]
            if last < self._acknowledged:
                raise OSError(f"data.mdb is at transaction {last}, but {self._acknowledged} was acknowledged")
            self._databases = {name: environment.open_db(name.encode()) for name in DATABASES}
            environment.reader_check()
            self._inode = os.stat(self.path).st_ino
            self._map_bytes = environment.info()["map_size"]
            self._page_bytes = int(environment.stat()["psize"])
        except BaseException:
            environment.close()
            raise
        return environment

    def _check_tree(self) -> None:
        assert self._env is not None
        with self._env.begin(write=True):  # no process changes the file meanwhile
            try:
                problems = verify.verify(self.name)
            except verify.VerifyError as error:
                problems = [str(error)]
        if problems:
            raise OSError(f"data.mdb is damaged: {problems[0]}; {len(problems)} problem(s) in all")

    def _give_up(self, environment: lmdb.Environment | None) -> None:
        """Close an environment that takes no more transactions, unless it is closed already."""
        with self._gate.alone():
            if self._env is environment:
                self._close()

    def _open_again(self) -> None:
        with self._gate.alone():
            if self._env is None:
                try:
                    self._env = self._opened()
                except (OSError, lmdb.Error) as error:
                    raise StoreUnavailableError(f"store {self.name} cannot be opened again ({error})") from error

    def _failed(self, error: Exception) -> str:
        """Open the file again after a failed write; returns what happened, for the person."""
        with self._gate.alone():
            self._close()
            try:
                self._env = self._opened()
                state = "what was stored before is intact"
            except (OSError, lmdb.Error) as again:
                state = f"opening it again failed, too ({again})"
        return f"writing to {self.name} failed ({error}); {state}; {_free(self.name)}"

    def _require_same_file(self) -> None:
        """A commit to a file that was removed or replaced would be lost. Raises OSError."""
        if os.stat(self.path).st_ino != self._inode:
            raise OSError("data.mdb was replaced by another file")

    def extend(self, map_bytes: int) -> None:
        """Let the file become `map_bytes` long, if it may not already. Call it outside of transactions."""
        if map_bytes > self._map_bytes:
            self._resize(map_bytes)

    def _resize(self, map_bytes: int) -> None:
        with self._gate.alone():
            if self._env is not None:
                self._env.set_mapsize(map_bytes)
                self._map_bytes = self._env.info()["map_size"]

    def compact(self) -> None:
        """Replace the file by a copy without free pages. The caller has seen to it that no other process has
        it open. The copy has no name until it is whole: killed, it leaves nothing behind. Raises OSError or
        lmdb.Error; then it is as before."""
        with self._gate.alone():
            assert self._env is not None
            try:
                with nameless_file(self.name) as copy:
                    self._env.copyfd(copy.fileno(), compact=True)
                    os.fsync(copy.fileno())
                    self._close()
                    name_file(copy, self.path)
                _sync(self.name)
                self._acknowledged = 0  # a compacted file counts its transactions from the start
            finally:
                if self._env is None:
                    self._env = self._opened()

    def _remove_copy(self) -> None:
        """Remove what a compaction that was killed left behind."""
        remove_unfinished(self.name)
        shutil.rmtree(os.path.join(self.name, "compact"), ignore_errors=True)  # of earlier versions

    def _close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


class _Gate:
    """Lets many transactions run at once, or one change of the map under all of them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1

    def leave(self) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._closed = True
            self._condition.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._condition.notify_all()


def _missing_bytes(environment: lmdb.Environment, name: str) -> int:
    """Bytes by which the file ends before the last page that its header counts."""
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    return max(0, int(needed) - os.stat(os.path.join(name, "data.mdb")).st_size)


def _free(name: str) -> str:
    try:
        found = os.statvfs(name)
    except OSError as error:
        return f"the folder is gone ({error})"
    return f"{found.f_bavail * found.f_frsize} bytes are free on that file system"


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
