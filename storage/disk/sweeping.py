"""Removing what was used longest ago: pages and states that nobody needs.

Order       by last use, oldest first (`uses`). Of one use states go before pages, since everything can do without them,
            and of a prefix its end before its beginning. So a state never outlives the pages under its chain
Live        pages that `is_live` are never removed. Their states are, where room is made, as if they were not
In between  a chain that somebody uses meanwhile keeps what it has
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from ..page import CHAIN_BYTES
from . import pieces
from .lmdb_file import PAGES, PIECES, STATES, USES
from .reserve import with_reserve
from .stored_records import StoredRecords
from .uses import Group, Use, Uses


def sweep(records: StoredRecords, uses: Uses, is_live: Callable[[bytes], bool], num_bytes: int | None) -> int:
    """As `DiskTier.sweep`."""
    dead: dict[Group, int] = defaultdict(int)
    has_pages: set[bytes] = set()
    for key, size in records.sizes(PAGES):
        has_pages.add(key[-CHAIN_BYTES:])
        if not is_live(key):
            dead[PAGES, key[-CHAIN_BYTES:]] += size
    for chain, size in state_sizes(records).items():
        if num_bytes is not None or not is_live(chain):
            dead[STATES, chain] = size
    doomed = uses.oldest(dead, num_bytes)
    if not doomed:
        return 0
    for database, chain in list(doomed):
        if database == PAGES or chain not in has_pages:
            doomed[USES, chain] = doomed[database, chain]
    return with_reserve(records.folder, lambda: _remove(records, uses, doomed, is_live))


def state_sizes(records: StoredRecords) -> dict[bytes, int]:
    """Bytes of each state by its chain, all of its pieces: it is they that make it large."""
    sizes = dict(records.sizes(STATES))
    for name, size in records.sizes(PIECES):
        chain = pieces.key_in(STATES, name)
        if chain in sizes:
            sizes[chain] += size
    return sizes


def _remove(records: StoredRecords, uses: Uses, doomed: dict[Group, Use], is_live: Callable[[bytes], bool]) -> int:
    """Delete these records in small transactions: each must rewrite its part of the tree in the room that is kept
    free. Returns how many records were deleted."""
    removed, file = 0, records.file
    for database in (STATES, PAGES, USES):
        at_once = 1 if database == STATES else max(1, records.kept_free // (4 * file.page_bytes))
        keys = [key for key in records.keys(database) if (database, key[-CHAIN_BYTES:]) in doomed]
        if database == PAGES:
            keys = [key for key in keys if not is_live(key)]
        for start in range(0, len(keys), at_once):
            with records.writing() as transaction:
                for key in keys[start : start + at_once]:
                    if uses.of(transaction, key[-CHAIN_BYTES:]) == doomed[database, key[-CHAIN_BYTES:]]:
                        removed += pieces.delete(file, transaction, database, key) and database != USES
    if removed:
        # NOTE: LMDB reuses what a transaction freed only in the next but one, and counts no empty ones.
        with records.writing() as transaction:
            transaction.put(b"sweep", removed.to_bytes(8, "little"), db=file.handle(USES))
    return removed
