"""Last uses of records: which of them a sweep may remove, and in which order.

A *use number* is drawn for every prompt. Chains are stamped with it in the transaction that writes their
records or finds them, so no other process's sweep can come in between; chains found in memory are stamped
with whatever is written next. The machine's clocks are not involved.

Order       by number, oldest first; within one number states before pages, and the end of a prefix first: what
            precedes it can still be found without it, but not the other way round
Claimed     what a living tier has used since it opened (`lease`) may be in use by it. The caller names what
            this tier itself uses
Rows        in database `uses`: chain -> number, place in its prefix (8 bytes each, little-endian);
            `clock` -> the newest number. Damage to them changes the order of eviction, never an answer
"""

from __future__ import annotations

import logging
import struct
import threading

import lmdb

from .folder_lease import FolderLease
from .lmdb_file import STATES, USES, LmdbFile

logger = logging.getLogger(__name__)

Use = tuple[int, int]
Group = tuple[str, bytes]
"""A database and a chain: all records that are there under it."""
_CLOCK = b"clock"
_ROW = struct.Struct("<QQ")
_UNKNOWN: Use = (0, 0)


class Uses:
    """The uses that one tier makes. `file` is open; `lease` claims records from the clock found there."""

    def __init__(self, file: LmdbFile, lease: FolderLease) -> None:
        self._file, self._lease = file, lease
        self._is_new, self._place = True, 0
        self._touched: list[bytes] = []
        self._lock = threading.Lock()
        with file.reading() as transaction:
            self._number = self._clock(transaction)
        try:
            lease.hold_from(self._number + 1)  # the first stamp draws a number
        except OSError as error:
            logger.info("a lease claims everything: its number could not be written (%s)", error)

    def begin(self) -> None:
        """Begin a new use: the next stamp draws a number."""
        self._is_new = True

    def touch(self, chains: list[bytes]) -> None:
        """Have these chains stamped with the next stamp, too."""
        with self._lock:
            self._touched += chains

    def stamp(self, transaction: lmdb.Transaction, chains: list[bytes]) -> None:
        if self._is_new:
            self.tick(transaction)
        with self._lock:
            touched, self._touched = self._touched, []
        for chain in dict.fromkeys([*touched, *chains]):
            self._place += 1
            transaction.put(chain, _ROW.pack(self._number, self._place), db=self._file.handle(USES))

    def tick(self, transaction: lmdb.Transaction) -> None:
        """Draw a use number."""
        self._is_new = False
        self._number = self._clock(transaction) + 1
        transaction.put(_CLOCK, self._number.to_bytes(8, "little"), db=self._file.handle(USES))

    def of(self, transaction: lmdb.Transaction, chain: bytes) -> Use:
        row = transaction.get(chain, db=self._file.handle(USES))
        return _ROW.unpack(row) if row is not None and len(row) == _ROW.size else _UNKNOWN

    def oldest(self, sizes: dict[Group, int], num_bytes: int | None) -> dict[Group, Use]:
        """The last uses of those in `sizes` to remove so that `num_bytes` come free, oldest first (None: all that may
        go)."""
        with self._file.reading() as transaction:
            uses = {group: self.of(transaction, group[1]) for group in sizes}
        claimed_from = min(self._lease.others(), default=None)
        doomed: dict[Group, Use] = {}
        freed = 0
        for group in sorted(sizes, key=lambda group: (uses[group][0], group[0] != STATES, -uses[group][1])):
            if claimed_from is not None and uses[group][0] >= claimed_from:
                break
            if num_bytes is not None and freed >= num_bytes:
                break
            doomed[group] = uses[group]
            freed += sizes[group]
        return doomed

    def _clock(self, transaction: lmdb.Transaction) -> int:
        row = transaction.get(_CLOCK, db=self._file.handle(USES))
        return int.from_bytes(row, "little") if row is not None and len(row) == 8 else 0
