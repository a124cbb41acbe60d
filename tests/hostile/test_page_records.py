"""Hostile page records on a real LMDB file: each is refused with the field that gives it away, and no byte of it
is handed out. Every one has a checksum that fits, except where the checksum is the point."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from codecs_under_test import PROFILE
from hostile import FINGERPRINT, KEY, TOKENS, by_hand, plant
from kv_pages import disk_tier

from stratakv.storage import PageLayout, page_key
from stratakv.storage.codecs import CODECS, make_codec
from stratakv.storage.disk import record

LAYOUT = PageLayout(num_heads=1, page_size=16, head_dim=8, dtype="float32")
"""1,024 bytes a page."""
RAW = np.linspace(-3, 5, 256, dtype="<f4").view(np.uint8)
ENCODERS = {name: make_codec(name, LAYOUT, PROFILE) for name in CODECS}
GOOD = {name: codec.encode(RAW) for name, codec in ENCODERS.items()}
GUARD = 0xAA


def page(by: str = "zstd", /, **changes: Any) -> bytes:
    """The record of an honest page, but for the changes."""
    return by_hand(**({"codec": ENCODERS[by].code, "payload": GOOD[by]} | changes))


def read(folder: Path, value: bytes) -> tuple[dict[int, str], np.ndarray]:
    """What the disk tier says of this value under `KEY`, and the page it wrote to, in the middle of guard bytes."""
    plant(folder, b"pages", KEY, value)
    disk = disk_tier(folder, fingerprint=FINGERPRINT)
    memory = np.full(3 * LAYOUT.page_bytes, GUARD, dtype=np.uint8)
    out = memory[LAYOUT.page_bytes : -LAYOUT.page_bytes]
    failures = disk.read_pages([KEY], TOKENS[None], lambda i: out, {c.code: c for c in ENCODERS.values()})
    disk.check_integrity()
    disk.close()
    return failures, memory


@pytest.mark.parametrize("codec", CODECS)
def test_an_honest_record_is_read(codec: str, tmp_path: Path) -> None:
    """What all the attacks below differ from in one place."""
    failures, memory = read(tmp_path, page(codec))
    expected = np.full(LAYOUT.page_bytes, GUARD, dtype=np.uint8)
    ENCODERS[codec].decode(memoryview(GOOD[codec]), expected)
    assert not failures
    np.testing.assert_array_equal(memory[LAYOUT.page_bytes : -LAYOUT.page_bytes], expected)
    assert (memory[: LAYOUT.page_bytes] == GUARD).all()
    assert (memory[-LAYOUT.page_bytes :] == GUARD).all()


def shifted(count: int) -> bytes:
    """Tokens and payload share their bytes: some of one are declared to be the other."""
    whole = TOKENS.astype("<u4").tobytes() + GOOD["raw"]
    ids, payload = np.frombuffer(whole[: 4 * count], "<u4"), whole[4 * count :]
    return page("raw", payload=payload, tokens=ids)


def flipped(place: int) -> bytes:
    changed = bytearray(page("raw"))
    changed[place] ^= 1
    return bytes(changed)


RECORDS = {
    "empty": (b"", "length"),
    "header-cut-short": (page()[:67], "length"),
    "last-byte-missing": (page()[:-1], "length"),
    "trailing-byte": (page() + b"\0", "length"),
    "trailing-byte-in-the-checksum": (page(tail=b"\0"), "length"),
    "trailing-record": (page() + page(), "length"),
    "payload-size-smaller": (page(size=len(GOOD["zstd"]) - 1), "length"),
    "payload-size-larger": (page(size=len(GOOD["zstd"]) + 1), "length"),
    "payload-size-huge": (page(size=2**64 - 1), "length"),
    "payload-size-wraps-around": (page(size=2**64 - 4 * len(TOKENS)), "length"),
    "token-count-smaller": (page(count=2), "length"),
    "token-count-larger": (page(count=4), "length"),
    "token-count-largest": (page(count=65535), "length"),
    "zeros": (bytes(4096), "magic"),
    "magic-of-another-format": (page(magic=b"PK\3\4"), "magic"),
    "magic-reversed": (page(magic=b"RVKS"), "magic"),
    "version-0": (page(version=0), "version"),
    "version-of-the-future": (page(version=2), "version"),
    "version-largest": (page(version=65535), "version"),
    "checksum-zero": (page(sum=0), "checksum"),
    "header-bit-flipped": (flipped(24), "checksum"),
    "token-bit-flipped": (flipped(68), "checksum"),
    "payload-bit-flipped": (flipped(100), "checksum"),
    "a-session-as-a-page": (page(kind=1), "kind"),
    "a-state-as-a-page": (page(kind=2), "kind"),
    "kind-unknown": (page(kind=255), "kind"),
    "another-models-page": (page(fingerprint=bytes(16)), "fingerprint"),
    "another-layers-page": (page(key=page_key(8, KEY[2:])), "key"),
    "another-prefixs-page": (page(key=page_key(7, bytes(16))), "key"),
    "no-key": (page(key=b""), "key"),
    "no-tokens": (page(tokens=TOKENS[:0]), "tokens"),
    "other-tokens-under-the-same-hash": (page(tokens=TOKENS[::-1]), "tokens"),
    "a-token-declared-payload": (shifted(2), "tokens"),
    "payload-declared-a-token": (shifted(4), "tokens"),
    "codec-unknown": (page(codec=record.LAST_CODEC + 1), "codec"),
    "codec-largest": (page(codec=255), "codec"),
    "raw-bytes-0": (page(raw=0), "raw bytes"),
    "raw-bytes-smaller": (page(raw=1020), "raw bytes"),
    "raw-bytes-larger": (page(raw=2048), "raw bytes"),
    "raw-bytes-huge": (page(raw=2**64 - 1), "raw bytes"),
}  # fmt: skip
"""Name -> (record, the field that is named)."""


def frame(raw: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True, **options).compress(raw)


def with_table(codec: str, *changes: tuple[int, str]) -> bytes:
    """Scales or minima by place, -1 the last, as the two bytes of an fp16."""
    payload, tables = bytearray(GOOD[codec]), 2 * (8 + 16)
    for place, half in changes:
        struct.pack_into("2s", payload, 2 * (place % tables), bytes.fromhex(half))
    return bytes(payload)


NAN, SIGNALLING_NAN, INFINITE, MINUS_INFINITE, MINUS_ONE = "007e", "017c", "007c", "00fc", "00bc"
HUGE, MINUS_HUGE = "e278", "e2f8"
"""40,000: twice that overflows fp16, and no page with it is encoded."""
DICTIONARY = zstandard.ZstdCompressionDict(bytes(range(256)) * 8)

ZSTD = {
    "empty": b"",
    "not-zstd": zlib.compress(bytes(1024)),
    "zstd-of-2016": bytes.fromhex("27b52ffd") + GOOD["zstd"][4:],
    "frame-of-a-larger-page": frame(bytes(1025)),
    "frame-of-a-smaller-page": frame(bytes(1023)),
    "frame-of-nothing": frame(b""),
    "size-undeclared": frame(bytes(1024), write_content_size=False),
    "truncated": GOOD["zstd"][:-1],
    "only-a-header": GOOD["zstd"][:6],
    "trailing-byte": GOOD["zstd"] + b"\0",
    "two-frames": GOOD["zstd"] * 2,
    "a-skippable-frame-behind": GOOD["zstd"] + struct.pack("<II", 0x184D2A50, 0),
    "a-skippable-frame-before": struct.pack("<II", 0x184D2A50, 0) + GOOD["zstd"],
    "a-skippable-frame-alone": struct.pack("<II", 0x184D2A50, 1024) + bytes(1024),
    "no-frame-checksum": zstandard.ZstdCompressor().compress(RAW.tobytes()),
    "frame-checksum-wrong": GOOD["zstd"][:-4] + b"\1\2\3\4",
    "dictionary-unknown": frame(bytes(range(256)) * 4, dict_data=DICTIONARY),
    "a-raw-page": GOOD["raw"],
}  # fmt: skip
GROUPED = {
    "empty": lambda good: b"",
    "truncated": lambda good: good[:-1],
    "trailing-byte": lambda good: good + b"\0",
    "twice": lambda good: good * 2,
    "tables-only": lambda good: good[: 4 * (8 + 16)],
    "a-raw-page": lambda good: GOOD["raw"],
    "the-other-codecs": lambda good: GOOD["int8" if good == GOOD["int4"] else "int4"],
}
TABLES: dict[str, list[tuple[int, str]]] = {
    "scale-nan": [(0, NAN)],
    "scale-signalling-nan": [(0, SIGNALLING_NAN)],
    "scale-infinite": [(0, INFINITE)],
    "scale-negative": [(0, MINUS_ONE)],
    "scale-huge": [(0, HUGE)],
    "minimum-nan": [(-1, NAN)],
    "minimum-signalling-nan": [(-1, SIGNALLING_NAN)],
    "minimum-infinite": [(-1, INFINITE)],
    "minimum-huge": [(-1, MINUS_HUGE)],
    "infinities-that-cancel": [(0, INFINITE), (8, MINUS_INFINITE)],
    "values-scale-nan": [(16, NAN)],
}
"""Tables are scales and minima of 8 channels, then of 16 tokens."""
PAYLOADS = {
    **{f"raw-{name}": ("raw", bytes(size)) for name, size in (("empty", 0), ("short", 1023), ("long", 1025))},
    **{f"zstd-{name}": ("zstd", payload) for name, payload in ZSTD.items()},
    **{f"{codec}-{name}": (codec, make(GOOD[codec])) for codec in ("int8", "int4") for name, make in GROUPED.items()},
    **{
        f"{codec}-{name}": (codec, with_table(codec, *places))
        for codec in ("int8", "int4")
        for name, places in TABLES.items()
    },
}
ATTACKS = RECORDS | {
    f"payload-{name}": (page(codec, payload=payload), "payload") for name, (codec, payload) in PAYLOADS.items()
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused_by_its_field(name: str, tmp_path: Path) -> None:
    value, field = ATTACKS[name]
    failures, memory = read(tmp_path, value)
    assert failures.keys() == {0}
    assert failures[0].startswith(f"{field}: ")
    assert (memory == GUARD).all(), "bytes of a refused page were handed out"
