"""A record of any length comes back as it was, and goes with all its pieces; one that lost a piece is too short."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from kv_pages import FINGERPRINT

from stratakv.storage.disk import pieces, record
from stratakv.storage.disk.lmdb_file import PIECES, SESSIONS, STATES, LmdbFile
from stratakv.storage.disk.pieces import PIECE_BYTES

HEAD = len(record.pack(record.SESSION, FINGERPRINT, b"", b""))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LmdbFile]:
    file = LmdbFile.share(tmp_path, 1 << 20, check=False, is_first=True)
    yield file
    file.release()


def packed(length: int, seed: int = 0) -> bytes:
    return record.pack(record.SESSION, FINGERPRINT, b"", random.Random(seed).randbytes(length - HEAD))


def put(file: LmdbFile, database: str, key: bytes, value: bytes) -> None:
    with file.writing() as transaction:
        pieces.put(file, transaction, database, key, value)


def get(file: LmdbFile, database: str, key: bytes) -> bytes | None:
    with file.reading() as transaction:
        found = pieces.get(file, transaction, database, key)
        return None if found is None else bytes(found)


def rest(file: LmdbFile) -> list[bytes]:
    """The keys of all pieces but the first ones."""
    with file.reading() as transaction:
        return [bytes(key) for key, _ in transaction.cursor(file.handle(PIECES))]


@pytest.mark.parametrize(
    ("length", "more"),
    [(HEAD, 0), (PIECE_BYTES, 0), (PIECE_BYTES + 1, 1), (3 * PIECE_BYTES, 2), (3 * PIECE_BYTES + 1, 3)],
)
def test_a_record_of_any_length_comes_back(file: LmdbFile, length: int, more: int) -> None:
    put(file, SESSIONS, b"a", packed(length))
    assert get(file, SESSIONS, b"a") == packed(length)
    assert len(rest(file)) == more


def test_a_piece_says_which_record_it_is_of(file: LmdbFile) -> None:
    put(file, STATES, b"a", packed(2 * PIECE_BYTES))
    (name,) = rest(file)
    assert (pieces.key_in(STATES, name), pieces.key_in(SESSIONS, name)) == (b"a", b"")


def test_records_of_one_key_in_two_databases_are_two(file: LmdbFile) -> None:
    for seed, database in enumerate((SESSIONS, STATES)):
        put(file, database, b"a", packed(2 * PIECE_BYTES, seed))
    assert [get(file, database, b"a") for database in (SESSIONS, STATES)] == [
        packed(2 * PIECE_BYTES, seed) for seed in range(2)
    ]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_record_that_lost_a_piece_is_too_short(file: LmdbFile, lost: int) -> None:
    put(file, SESSIONS, b"a", packed(3 * PIECE_BYTES))
    with file.writing() as transaction:
        transaction.delete(rest(file)[lost], db=file.handle(PIECES))
    assert get(file, SESSIONS, b"a") == packed(3 * PIECE_BYTES)[: (1 + lost) * PIECE_BYTES]


def test_what_is_replaced_or_deleted_leaves_no_pieces(file: LmdbFile) -> None:
    put(file, SESSIONS, b"a", packed(5 * PIECE_BYTES))
    put(file, SESSIONS, b"b", packed(2 * PIECE_BYTES))
    put(file, SESSIONS, b"a", packed(2 * PIECE_BYTES, 1))
    assert get(file, SESSIONS, b"a") == packed(2 * PIECE_BYTES, 1)
    assert len(rest(file)) == 2
    with file.writing() as transaction:
        assert pieces.delete(file, transaction, SESSIONS, b"a")
        assert not pieces.delete(file, transaction, SESSIONS, b"a")
    assert (get(file, SESSIONS, b"a"), get(file, SESSIONS, b"b")) == (None, packed(2 * PIECE_BYTES))
    assert len(rest(file)) == 1
