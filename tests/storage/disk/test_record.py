"""Records: the bytes on disk, and that no change of them goes unseen (hostile ones: `tests/hostile/`)."""

from __future__ import annotations

import pytest
from hostile import FINGERPRINT, KEY, PAYLOAD, TOKENS, by_hand

from stratakv.storage import RecordError
from stratakv.storage.disk import record


def packed() -> bytes:
    return record.pack(record.PAGE, FINGERPRINT, KEY, PAYLOAD, codec=1, raw_bytes=1024, tokens=TOKENS)


def unpack(buffer: bytes, kind: int = record.PAGE, fingerprint: bytes = FINGERPRINT, key: bytes = KEY) -> record.Record:
    return record.unpack(buffer, kind, fingerprint, key)


def test_golden_bytes() -> None:
    """The format on disk: docstring, program and this literal must agree."""
    assert packed() == by_hand()
    assert packed().hex() == (
        "534b565201000001"
        "6465666768696a6b6c6d6e6f70717273"
        "0007000102030405060708090a0b0c0d0e0f"
        "030000040000000000000f00000000000000"
        "c51bb8ba39d74576"
        "01000000ffffffff50c30000"
        "6b65797320616e642076616c756573"
    )


def test_unpack_returns_what_was_packed() -> None:
    found = unpack(packed())
    assert (found.kind, found.codec, found.raw_bytes) == (record.PAGE, 1, 1024)
    assert bytes(found.ids) == TOKENS.astype("<u4").tobytes()
    assert bytes(found.payload) == PAYLOAD


def test_a_session_has_no_key_and_no_tokens() -> None:
    found = unpack(record.pack(record.SESSION, FINGERPRINT, b"", PAYLOAD), record.SESSION, key=b"")
    assert bytes(found.payload) == PAYLOAD
    assert len(found.ids) == 0
    assert found.raw_bytes == len(PAYLOAD)


def test_every_flipped_bit_is_found() -> None:
    good = packed()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            unpack(bytes(bad))


def test_every_truncation_is_found() -> None:
    good = packed()
    for length in range(len(good)):
        with pytest.raises(RecordError, match=r"^length"):
            unpack(good[:length])
