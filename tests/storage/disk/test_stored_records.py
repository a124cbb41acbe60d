"""Records are verified when read and kept below a cap when written, and what a later version wrote stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kv_pages import FINGERPRINT
from records import resealed

from stratakv.storage import LaterVersionError, RecordError, StorageFullError
from stratakv.storage.disk import record, stored_records
from stratakv.storage.disk.lmdb_file import STATES, LmdbFile
from stratakv.storage.disk.stored_records import StoredRecords

CAP = 1 << 20
KEY, OTHER = bytes(16), bytes([1] * 16)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[StoredRecords]:
    file = LmdbFile.share(tmp_path, CAP, check=False, is_first=True)
    yield StoredRecords(file, tmp_path, CAP, FINGERPRINT)
    file.release()


def state(key: bytes, payload: bytes) -> tuple[bytes, bytes]:
    return key, record.pack(record.STATE, FINGERPRINT, key, payload)


def get(records: StoredRecords, key: bytes) -> bytes | None:
    return records.get(STATES, key, record.STATE, key)


def test_what_is_read_was_written_under_that_key(records: StoredRecords) -> None:
    (_, sound), (_, moved) = state(KEY, b"sound"), state(KEY, b"moved")
    records.write(STATES, [(KEY, sound), (OTHER, moved)])
    assert get(records, KEY) == b"sound"
    assert records.get_version(STATES, KEY, record.STATE, KEY) == (record.checksum(sound), b"sound")
    assert get(records, bytes([2] * 16)) is None
    with pytest.raises(RecordError, match=r"^key: "):
        get(records, OTHER)
    assert [key for key, why in records.damaged(STATES, record.STATE)] == [OTHER]
    assert (records.unverified(STATES, OTHER), records.checksum(STATES, OTHER)) == (b"moved", record.checksum(moved))


def test_a_write_that_does_not_fit_changes_nothing_and_says_what_helps(records: StoredRecords, tmp_path: Path) -> None:
    asked: list[int] = []

    def grow(needed: int) -> bool:
        asked.append(needed)
        return False

    records.grow = grow
    with pytest.raises(StorageFullError, match=f"disk tier {tmp_path} is full: cap {CAP} bytes; raise disk_gb") as full:
        records.write(STATES, [state(KEY, b"small"), state(OTHER, bytes(CAP))])
    assert full.value.is_at_cap
    assert get(records, KEY) is None
    assert len(asked) == 1
    assert asked[0] > CAP


def test_a_cap_that_grows_takes_the_write(records: StoredRecords) -> None:
    def grow(needed: int) -> bool:
        records.cap_bytes += needed
        records.file.extend(records.cap_bytes)
        return True

    records.grow = grow
    records.write(STATES, [state(KEY, bytes(CAP))])
    assert get(records, KEY) == bytes(CAP)


def test_what_is_full_can_still_be_deleted_from(records: StoredRecords) -> None:
    keys = [number.to_bytes(16, "big") for number in range(CAP // 15_000)]

    def fill() -> None:
        for key in keys:
            records.write(STATES, [state(key, bytes(15_000))])

    with pytest.raises(StorageFullError):
        fill()
    stored = [*records.keys(STATES)]
    with records.file.reading() as transaction:
        assert 0.8 * CAP < records.used_bytes(transaction) <= CAP - records.kept_free
    assert records.delete(STATES, stored) == len(stored)
    assert list(records.keys(STATES)) == []


def test_what_a_later_version_wrote_is_neither_read_nor_replaced(records: StoredRecords) -> None:
    _, packed = state(KEY, b"theirs")
    records.write(STATES, [(KEY, resealed(packed, version=record.VERSION + 1))])
    assert records.write(STATES, [state(KEY, b"ours"), state(OTHER, b"ours")]) == {KEY}
    assert (get(records, OTHER), records.unverified(STATES, KEY)) == (b"ours", b"theirs")
    assert (records.has(STATES, KEY), records.has(STATES, OTHER)) == (False, True)
    with pytest.raises(LaterVersionError):
        get(records, KEY)
    assert records.num_later(STATES) == 1
    assert list(records.damaged(STATES, record.STATE)) == []
    assert records.delete(STATES, [KEY, OTHER]) == 1
    assert records.delete(STATES, [KEY], also_later=True) == 1


def test_whoever_objects_keeps_everything_as_it_was(records: StoredRecords) -> None:
    records.write(STATES, [state(KEY, b"before")])

    def object_to(*_: object) -> None:
        raise StorageFullError("I object")

    for before in ("first", "then"):
        with pytest.raises(StorageFullError, match="I object"):
            records.write(STATES, [state(KEY, b"after")], **{before: object_to})
        assert get(records, KEY) == b"before", before
    records.check = object_to
    with pytest.raises(StorageFullError, match="I object"):
        records.write(STATES, [state(KEY, b"after")])
    assert get(records, KEY) == b"before"


def test_keys_come_in_order_and_once_though_they_are_read_in_parts(
    records: StoredRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_records, "_KEYS_PER_READ", 2)
    for count in range(6):
        keys = [b"a" + bytes(number) for number in range(count)]
        records.write(STATES, [(key, bytes(len(key))) for key in reversed(keys)])
        assert list(records.sizes(STATES)) == [(key, len(key)) for key in keys]
