"""Records to plant in a store, as `storage/disk/record.py` and docs/FORMAT.md lay them out, made without the module."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import xxhash

from stratakv.storage import page_key

FINGERPRINT = bytes(range(100, 116))
KEY = page_key(7, bytes(range(16)))
TOKENS = np.array([1, 2**32 - 1, 50_000], dtype=np.uint32)
PAYLOAD = b"keys and values"
_HEAD = struct.Struct("<4sHBB16s18sHQQ")


def by_hand(*, tokens: np.ndarray = TOKENS, payload: bytes = PAYLOAD, tail: bytes = b"", **changes: Any) -> bytes:
    """One record; `changes` are header fields, or `sum`. Otherwise the checksum fits."""
    fields = {
        "magic": b"SKVR", "version": 1, "kind": 0, "codec": 1, "fingerprint": FINGERPRINT, "key": KEY,
        "count": len(tokens), "raw": 1024, "size": len(payload),
    }  # fmt: skip
    checksum = changes.pop("sum", None)
    assert changes.keys() <= fields.keys(), changes
    head = _HEAD.pack(*(fields | changes).values())
    rest = tokens.astype("<u4").tobytes() + payload + tail
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + rest) if checksum is None else checksum) + rest


def plant(folder: Path, database: bytes, key: bytes, value: bytes) -> None:
    """Write a value past the store; no store may have the folder open."""
    folder.mkdir(exist_ok=True)
    with lmdb.open(str(folder), max_dbs=8, map_size=64 << 20) as environment:
        there = environment.open_db(database)
        with environment.begin(db=there, write=True) as transaction:
            transaction.put(key, value)
