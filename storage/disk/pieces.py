"""Long records in pieces.

LMDB gives a value that is longer than a quarter of its page a run of neighbouring pages. Sessions and states
may be megabytes; such runs are hardly ever found free between the others, so the file would grow with every
save. The first piece is stored under the record's key, the rest under key and number in database `pieces`; how
much is missing the record's own header says. A record that fits one piece is stored as it always was.
"""

from __future__ import annotations

import lmdb

from . import record
from .lmdb_file import PIECES, LmdbFile

PIECE_BYTES = 4 * 4096 - 16
"""Bytes of four of LMDB's pages, of which the first has a header."""


def put(file: LmdbFile, transaction: lmdb.Transaction, database: str, key: bytes, packed: bytes) -> None:
    delete(file, transaction, database, key)
    transaction.put(key, packed[:PIECE_BYTES], db=file.handle(database))
    for number, start in enumerate(range(PIECE_BYTES, len(packed), PIECE_BYTES)):
        piece = packed[start : start + PIECE_BYTES]
        transaction.put(_name(database, key, number), piece, db=file.handle(PIECES))


def get(file: LmdbFile, transaction: lmdb.Transaction, database: str, key: bytes) -> memoryview | bytes | None:
    """Read the whole record; None if there is none, too short if pieces are missing. The result may borrow the
    transaction's memory."""
    first = transaction.get(key, db=file.handle(database))
    if first is None or len(first) >= record.length(first):
        return first
    pieces, missing = [bytes(first)], record.length(first) - len(first)
    while missing > 0:
        piece = transaction.get(_name(database, key, len(pieces) - 1), db=file.handle(PIECES))
        if piece is None:
            break
        pieces.append(bytes(piece))
        missing -= len(piece)
    return b"".join(pieces)


def delete(file: LmdbFile, transaction: lmdb.Transaction, database: str, key: bytes) -> bool:
    """Delete the record with all its pieces. Returns True if there was one."""
    number = 0
    while transaction.delete(_name(database, key, number), db=file.handle(PIECES)):
        number += 1
    return bool(transaction.delete(key, db=file.handle(database)))


def key_in(database: str, name: bytes) -> bytes:
    """The key of the record in `database` that a piece called `name` is of; empty if it is of another's."""
    return name[2:-4] if name[:2] == database[:2].encode() else b""


def _name(database: str, key: bytes, number: int) -> bytes:
    return database[:2].encode() + key + number.to_bytes(4, "big")
