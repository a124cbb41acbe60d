"""Records: the bytes on disk, and everything `unpack` and the codecs must refuse."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

from stratakv.storage import PageLayout, RecordError, page_key, record
from stratakv.storage.codecs import CODECS, make_codec

FINGERPRINT = bytes(range(100, 116))
KEY = page_key(7, bytes(range(16)))
TOKENS = np.array([1, 2**32 - 1, 50_000], dtype=np.uint32)
PAYLOAD = b"keys and values"
HEAD = "<4sHBB16s18sHQQ"


def by_hand(**changes: Any) -> bytes:
    """A record as its docstring lays it out, written without the module. `changes` are header fields."""
    fields = {
        "magic": b"SKVR", "version": 1, "kind": 0, "codec": 1, "fingerprint": FINGERPRINT, "key": KEY,
        "count": 3, "raw": 1024, "size": len(PAYLOAD),
    } | changes  # fmt: skip
    head = struct.pack(HEAD, *fields.values())
    rest = struct.pack("<3I", *TOKENS.tolist()) + PAYLOAD
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + rest)) + rest


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
    assert found.tokens.tolist() == TOKENS.tolist()
    assert bytes(found.payload) == PAYLOAD


def test_a_session_has_no_key_and_no_tokens() -> None:
    found = unpack(record.pack(record.SESSION, FINGERPRINT, b"", PAYLOAD), record.SESSION, key=b"")
    assert bytes(found.payload) == PAYLOAD
    assert len(found.tokens) == 0
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


@pytest.mark.parametrize(
    ("buffer", "field"),
    [
        (packed() + b"\0", "length"),
        (packed() + packed(), "length"),
        (by_hand(size=len(PAYLOAD) - 1), "length"),
        (by_hand(size=2**64 - 1), "length"),
        (by_hand(count=2), "length"),
        (by_hand(magic=b"SKVS"), "magic"),
        (by_hand(version=0), "version"),
        (by_hand(version=2), "version"),
        (by_hand(kind=record.SESSION), "kind"),
        (by_hand(kind=record.STATE), "kind"),
        (by_hand(fingerprint=bytes(16)), "fingerprint"),
        (by_hand(key=page_key(8, KEY[2:])), "key"),
        (by_hand(key=page_key(7, KEY[:16])), "key"),
        (packed()[:-1] + b"S", "checksum"),
        (bytes(4096), "magic"),
    ],
    ids=[
        "trailing-byte", "two-records", "size-smaller", "size-huge", "count-smaller", "magic", "version-0", "version-2",
        "session", "state", "fingerprint", "other-layer", "other-chain", "checksum", "zeros",
    ],
)  # fmt: skip
def test_foreign_records_are_refused(buffer: bytes, field: str) -> None:
    """Each with a checksum that fits, except where the checksum is the point."""
    with pytest.raises(RecordError, match=f"^{field}"):
        unpack(buffer)


LOSSY = {"int4"}
"""Tested by itself (`test_int4.py`)."""


def layout_of(item_bytes: int, page_bytes: int) -> PageLayout:
    """Pages of four tokens and that many bytes."""
    dtype = "float32" if item_bytes == 4 else "bfloat16"
    return PageLayout(num_heads=1, page_size=4, head_dim=page_bytes // (8 * item_bytes), dtype=dtype)


@pytest.mark.parametrize("name", sorted(set(CODECS) - LOSSY))
@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("size", [32, 8192, 9 << 20])
@pytest.mark.parametrize("kind", ["zeros", "noise", "normal"])
def test_codecs_are_lossless(name: str, item_bytes: int, size: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "normal":
        floats = rng.standard_normal(size // item_bytes, dtype=np.float32)
        raw = (floats.view(np.uint32) >> 16).astype("<u2") if item_bytes == 2 else floats
        raw = raw.view(np.uint8)
    else:
        raw = rng.integers(0, 256 if kind == "noise" else 1, size, dtype=np.uint8)
    codec = make_codec(name, layout_of(item_bytes, size))
    out = np.full(size, 0xAA, dtype=np.uint8)
    codec.decode(memoryview(codec.encode(raw)), out)
    np.testing.assert_array_equal(out, raw)


def test_codec_numbers_are_those_on_disk() -> None:
    numbers = {name: make_codec(name, layout_of(2, 1024)).code for name in CODECS}
    assert numbers == {"raw": 0, "zstd": 1, "int4": 2}


def test_byte_planes_save_space_on_floats() -> None:
    """What the codec exists for: sign and exponent of neighbours repeat."""
    floats = np.random.default_rng(0).standard_normal(32768, dtype=np.float32)
    bf16 = (floats.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    assert len(make_codec("zstd", layout_of(2, 65536)).encode(bf16)) < 0.8 * bf16.nbytes
    assert len(make_codec("zstd", layout_of(4, 131072)).encode(floats.view(np.uint8))) < 0.95 * floats.nbytes


def frame(raw: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(raw)


SKIPPABLE = struct.pack("<II", 0x184D2A50, 1024) + bytes(1024)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(zlib.compress(bytes(1024)), id="not-zstd"),
        pytest.param(frame(bytes(64 << 20)), id="bomb"),
        pytest.param(frame(bytes(1025)), id="larger"),
        pytest.param(frame(bytes(1023)), id="smaller"),
        pytest.param(frame(bytes(1024), write_content_size=False), id="size-undeclared"),
        pytest.param(frame(bytes(1024))[:-1], id="truncated"),
        pytest.param(frame(bytes(1024)) + b"\0", id="trailing-byte"),
        pytest.param(frame(bytes(1024)) * 2, id="two-frames"),
        pytest.param(SKIPPABLE, id="skippable-frame"),
        pytest.param(frame(bytes(1024), write_checksum=True)[:-4] + b"\1\2\3\4", id="frame-checksum"),
    ],
)
def test_zstd_refuses_what_it_did_not_write(payload: bytes) -> None:
    out = np.zeros(1024, dtype=np.uint8)
    with pytest.raises(RecordError, match=r"^payload"):
        make_codec("zstd", layout_of(4, 1024)).decode(memoryview(payload), out)


@pytest.mark.parametrize("size", [0, 1023, 1025, 2048])
def test_raw_refuses_another_size(size: int) -> None:
    with pytest.raises(RecordError, match=r"^payload"):
        make_codec("raw", layout_of(4, 1024)).decode(memoryview(bytes(size)), np.zeros(1024, dtype=np.uint8))


def test_unknown_codec_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"raw.*zstd.*gzip"):
        make_codec("gzip", layout_of(4, 1024))
