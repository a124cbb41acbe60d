"""The disk tier: records in one LMDB file per model fingerprint.

Invariants  (1) a record is visible only after its transaction committed
            (2) every read is verified (`record.unpack`); damage is an error, never data
            (3) a sweep takes the least recently used records first and no pages that may be in use (`sweeping`)
Crash       process kill: every committed record survives, others vanish whole; nothing to repair.
            Power loss: the same, because commits are synchronous (LMDB's default).
Threads     read anywhere; write transactions are serialised by LMDB. Never used across fork.
Cap         of this folder alone, or with `is_shared` of the whole store around it: then the file grows in steps, each
            claimed before (`share`), and when nothing is left, other folders may `give_way`.
Folder      `<store>/<fingerprint>/`: private to the user (`private`), a readable `config.json` beside
            `data.mdb`. Not for network file systems.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from ..errors import LaterVersionError, RecordError, StorageFullError, StoreUnavailableError, store_unavailable
from ..files.private import private_file, private_folder
from ..page import CHAIN_BYTES
from . import record
from .folder_lease import FolderLease
from .lmdb_file import PAGES, STATES, LmdbFile
from .lmdb_format import refuse_later
from .reserve import with_reserve
from .sessions import SessionShelf
from .share import DATA, Share
from .stored_records import StoredRecords
from .sweeping import state_sizes, sweep
from .uses import Uses

if TYPE_CHECKING:
    import numpy as np

    from ..codecs import Codec

logger = logging.getLogger(__name__)

_MIN_CAP_BYTES = 1 << 20
_MIN_FILE_BYTES = 64 << 10
"""Bytes that a file takes which holds nothing yet, generously rounded up."""
_PAGES_PER_READ = 32
"""Pages read in one transaction: a long transaction would keep LMDB from using freed pages again."""


class DiskTier(SessionShelf):
    """Pages, session records and states of one model.

    Args:
        folder: created if missing, with mode 0700.
        fingerprint: 16 bytes naming model, dtype, RoPE and page layout.
        description: written to `config.json` for people; None leaves what is there.
        is_shared: `cap_bytes` is the cap of all folders beside this one together.

    Raises:
        StoreUnavailableError: the folder cannot be created or written, or its file is damaged. LaterStoreError: a later
            version wrote the file.
        StorageFullError: other folders leave none of a shared cap.
    """

    name = "disk"

    def __init__(
        self, folder: Path, cap_bytes: int, fingerprint: bytes, description: dict[str, object] | None, *,
        is_shared: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.fingerprint = fingerprint
        self.give_way: Callable[[int], int] | None = None
        """Makes other folders of the store smaller by a number of bytes; returns by how many. None: they stay."""
        self.remedy = "raise disk_gb"
        """Words for messages that say what lets the store hold more."""
        self._claiming = threading.Lock()
        try:
            private_folder(folder)
            if description is not None:
                private_file(folder / "config.json", json.dumps(description, indent=2) + "\n")
            self._lease = FolderLease(Path(os.path.realpath(folder)))
            try:
                self._open(cap_bytes if is_shared else max(cap_bytes, _MIN_CAP_BYTES), is_shared=is_shared)
            except BaseException:
                self._lease.release()
                raise
        except (OSError, lmdb.Error) as error:
            refuse_later(folder)
            raise store_unavailable(folder, error) from error

    def _open(self, cap_bytes: int, *, is_shared: bool) -> None:
        is_first = not self._lease.others()
        self._share = Share(self.folder, cap_bytes, self._lease) if is_shared else None
        room = cap_bytes if self._share is None else self._share.claim(self._share.step_bytes)
        if self._share is not None and room < _MIN_FILE_BYTES and not (self.folder / DATA).exists():
            others = self._share.others_bytes
            why = f"other folders take {others} of its cap of" if others else "its cap is"
            raise StorageFullError(
                f"the store {self.folder.parent} has no room for {self.folder.name}: {why} {cap_bytes} bytes",
                is_at_cap=True,
            )
        self._file = LmdbFile.share(self.folder, room, check=self._lease.after_a_death, is_first=is_first)
        try:
            self._uses = Uses(self._file, self._lease)
        except BaseException:
            self._file.release()
            raise
        room = max(room, self.file_bytes)
        self.cap_bytes = room if self._share is None else self._share.most_bytes
        self._records = StoredRecords(self._file, self.folder, room, self.fingerprint)
        if self._share is not None:
            self._records.grow, self._records.why_full = self._grow, self._why_full

    # The cap

    def claim(self, num_bytes: int, wanted: int = 0) -> int:
        """Let the data file become `num_bytes` long, if need be in room that other folders give up; or even `wanted`,
        if so much is free. Returns how long it may become: less than `num_bytes` where no more is to be had."""
        has_it = max(num_bytes, wanted) <= self._records.cap_bytes
        if has_it or self._share is None or not self._lease.is_held:
            return self._records.cap_bytes
        with self._claiming:
            try:
                room = self._share.claim(max(num_bytes, wanted))
                if room < num_bytes and self.give_way is not None and self.give_way(num_bytes - room):
                    room = self._share.claim(num_bytes)
            except OSError as error:
                logger.info("%s stays as long as it is: %s", self.folder, error)
                return self._records.cap_bytes
            self.cap_bytes = self._share.most_bytes
            self._file.extend(room)
            self._records.cap_bytes = room
        return room

    def _grow(self, needed: int) -> bool:
        assert self._share is not None
        before = self._records.cap_bytes
        return self.claim(before + needed, before + max(2 * needed, self._share.step_bytes)) > before

    def _why_full(self) -> str:
        assert self._share is not None
        others = self._share.others_bytes
        beside = f", of which other folders of the store take {others}" if others else ""
        or_remove = " or remove sessions with `stratakv sessions rm`" if others or self.session_names() else ""
        return f"cap {self._share.cap_bytes} bytes{beside}; {self.remedy}{or_remove}"

    # Pages

    def contains(self, key: bytes) -> bool:
        return self._records.has(PAGES, key)

    def num_leading(self, chains: list[bytes], keys_of: Callable[[bytes], Iterable[bytes]]) -> int:
        """Count the leading `chains` of which every key is stored in a record that this version reads. Counting is a
        use: no sweep removes these records now."""
        self._uses.begin()
        try:
            with self._file.reading() as transaction:
                count = self._num_leading(transaction, chains, keys_of)
        except StoreUnavailableError as error:
            logger.warning("%s", error)
            return 0
        if not count:
            return 0
        try:
            with self._records.writing() as transaction:
                count = self._num_leading(transaction, chains[:count], keys_of)
                self._uses.stamp(transaction, chains[:count])
        except StorageFullError as error:
            logger.info("pages found are not kept from other processes' sweeps: %s", error)
        return count

    def _num_leading(
        self, transaction: lmdb.Transaction, chains: list[bytes], keys_of: Callable[[bytes], Iterable[bytes]]
    ) -> int:
        count = 0
        try:
            for chain in chains:
                if not all(self._records.is_readable(transaction, PAGES, key) for key in keys_of(chain)):
                    break
                count += 1
        except lmdb.Error as error:
            logger.warning("%s is damaged (%s): %d stored pages were found before that", self.folder, error, count)
        return count

    def used(self, chains: list[bytes]) -> None:
        """Note that these pages, which were found in memory, are in use. They are stamped with the next write."""
        self._uses.begin()
        self._uses.touch(chains)

    def read_pages(
        self,
        keys: list[bytes],
        tokens: np.ndarray,
        out: Callable[[int], np.ndarray],
        codecs: dict[int, Codec],
    ) -> dict[int, str]:
        """Read and verify pages; `out(i)` is the buffer for key i. Returns why a page cannot be used, by i."""
        ids = tokens.astype("<u4", copy=False)
        failures: dict[int, str] = {}
        start = 0
        while start < len(keys):
            try:
                with self._file.reading() as transaction:
                    start = self._read_some(transaction, start, keys, ids, out, codecs, failures)
            except (StoreUnavailableError, lmdb.Error) as error:
                failures[start] = str(error)
                start += 1
        return failures

    def _read_some(
        self, transaction: lmdb.Transaction, start: int, keys: list[bytes], ids: np.ndarray,
        out: Callable[[int], np.ndarray], codecs: dict[int, Codec], failures: dict[int, str],
    ) -> int:  # fmt: skip
        """Read pages from number `start` on, up to one that LMDB refuses: after it the transaction is of no use.
        Returns the number of the page to go on with."""
        pages = self._file.handle(PAGES)
        stop = min(start + _PAGES_PER_READ, len(keys))
        for i in range(start, stop):
            try:
                buffer = transaction.get(keys[i], db=pages)
                if buffer is None:
                    raise RecordError("the record is missing")
                self._decode(buffer, keys[i], ids[i], out(i), codecs)
            except RecordError as error:
                failures[i] = str(error)
            except lmdb.Error as error:
                failures[i] = str(error)
                return i + 1
        return stop

    def _decode(
        self, buffer: bytes | memoryview, key: bytes, ids: np.ndarray, out: np.ndarray, codecs: dict[int, Codec]
    ) -> None:
        found = record.unpack(buffer, record.PAGE, self.fingerprint, key)
        if found.ids != ids.tobytes():
            raise RecordError("tokens: the record holds other tokens under the same hash")
        if found.codec not in codecs:
            raise LaterVersionError(f"codec: {found.codec} is unknown to this program")
        if found.raw_bytes != out.nbytes:
            raise RecordError(f"raw bytes: {found.raw_bytes}, a page has {out.nbytes}")
        codecs[found.codec].decode(found.payload, out)

    def write_pages(self, records: list[tuple[bytes, bytes]]) -> set[bytes] | None:
        """Write pages in one durable transaction. Raises StorageFullError; then none of them is stored.

        Returns the keys of pages that are not stored, if any: a later version wrote those, and they stay as they are.
        """
        chains = [key[-CHAIN_BYTES:] for key, _ in records]
        return self._records.write(PAGES, records, lambda transaction: self._uses.stamp(transaction, chains)) or None

    def copy_pages(self, source: DiskTier, keys: list[bytes]) -> None:
        """Copy pages of the same layout from another folder, under our fingerprint. Pages that are here already, or
        missing or damaged there, are left out. Raises StorageFullError, LaterVersionError."""
        missing = [key for key in keys if not self.contains(key)]
        for start in range(0, len(missing), _PAGES_PER_READ):
            packed = []
            for key in missing[start : start + _PAGES_PER_READ]:
                page = source.page_record(key)
                if page is not None:
                    packed.append((key, record.repack(page, self.fingerprint, key)))
            self.write_pages(packed)

    def page_record(self, key: bytes) -> record.Record | None:
        """The record of a page as it is stored; None if it is missing or damaged. Raises LaterVersionError."""
        try:
            return self._records.whole(PAGES, key, record.PAGE)
        except LaterVersionError:
            raise
        except RecordError:
            return None

    def damaged_pages(self) -> Iterator[tuple[bytes, str]]:
        """Read every page. Yields the keys of those that cannot be used, and why."""
        return self._records.damaged(PAGES, record.PAGE)

    def damaged_states(self) -> Iterator[tuple[bytes, str]]:
        return self._records.damaged(STATES, record.STATE)

    def num_later(self) -> dict[str, int]:
        """Count the pages and the states that a later version wrote, by database."""
        return {database: self._records.num_later(database) for database in (PAGES, STATES)}

    def page_sizes(self) -> Iterator[tuple[bytes, int]]:
        """Yield the keys of all pages, in order, with the bytes of their records."""
        return self._records.sizes(PAGES)

    # States

    def put_state(self, chain: bytes, payload: bytes) -> None:
        """Store a state under `chain`, unless a later version left one there. Raises StorageFullError."""
        packed = record.pack(record.STATE, self.fingerprint, chain, payload)
        self._records.write(STATES, [(chain, packed)])

    def get_state(self, chain: bytes) -> bytes | None:
        return self._records.get(STATES, chain, record.STATE, chain)

    def state_sizes(self) -> dict[bytes, int]:
        """Bytes of all states, by chain."""
        return state_sizes(self._records)

    @property
    def num_states(self) -> int:
        """Number of stored states; 0 while the file cannot be opened."""
        return self._num_entries(STATES)

    # Space

    def sweep(self, is_live: Callable[[bytes], bool], num_bytes: int | None = None) -> int:
        """Delete pages and states for which `is_live(key)` is false; returns how many.

        Args:
            num_bytes: stop when records of so many bytes are gone, those that were used longest ago (`sweeping`); then
                states of live chains may be among them. None: take all.
        """
        return sweep(self._records, self._uses, is_live, num_bytes)

    def compact(self) -> bool:
        """Give the room of deleted records back to the file system. Returns False if another tier has the store open.

        Raises StorageFullError if there is no room for the copy; the store is as before then.
        """
        with self._lease.alone() as is_alone:
            if is_alone:
                with_reserve(self.folder, self._compact, self.used_bytes)
            return is_alone

    def _compact(self) -> None:
        try:
            self._file.compact()
        except (OSError, lmdb.Error) as error:
            raise StorageFullError(f"{self.folder} was not compacted ({error})") from error

    def probe(self, num_bytes: int = 0) -> None:
        """Show by a small durable transaction that records of `num_bytes` could be written now. Raises StorageFullError
        if not."""
        self._records.write_in_room(num_bytes, self._uses.tick)

    @property
    def used_bytes(self) -> int:
        """Bytes of live LMDB pages; 0 while the file cannot be opened."""
        try:
            with self._file.reading() as transaction:
                return self._records.used_bytes(transaction)
        except (StoreUnavailableError, lmdb.Error):
            return 0

    @property
    def file_bytes(self) -> int:
        """Bytes of the data file on the file system. Room of deleted records is part of it until `compact`."""
        return self._file.size()

    @property
    def num_pages(self) -> int:
        """Number of stored pages; 0 while the file cannot be opened."""
        return self._num_entries(PAGES)

    def _num_entries(self, database: str) -> int:
        try:
            with self._file.reading() as transaction:
                return int(transaction.stat(self._file.handle(database))["entries"])
        except (StoreUnavailableError, lmdb.Error):
            return 0

    def check_integrity(self) -> None:
        missing = self._file.missing_bytes()
        assert not missing, f"disk: file has {self.file_bytes} bytes, its pages need {missing} more"
        self._records.require_cap()

    def require_process(self) -> None:
        """Raises ForkedError in a child of the process that opened the tier."""
        self._file.require_process()

    def close(self) -> None:
        self._file.release()
        self._lease.release()
