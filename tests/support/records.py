"""Where a store's records lie in LMDB's file, and damage to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import xxhash

from stratakv.runtime.sessions.saved import StoreFolder
from stratakv.storage.disk import pieces


def record_offsets(folder: Path, database: str) -> dict[bytes, tuple[int, int]]:
    """Key -> (offset in `data.mdb`, length) of every record, from where LMDB maps it; nobody has the store open."""
    path = str((folder / "data.mdb").resolve())
    with lmdb.open(str(folder), max_dbs=8) as environment, environment.begin(buffers=True) as transaction:
        (mapped,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
        base = int(mapped.split("-")[0], 16)
        handle = environment.open_db(database.encode(), txn=transaction, create=False)
        return {
            bytes(key): (np.frombuffer(value, dtype=np.uint8).ctypes.data - base, len(value))
            for key, value in transaction.cursor(handle)
        }


def flip_bit(folder: Path, offset: int, bit: int) -> None:
    with open(folder / "data.mdb", "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def change_records(folder: Path, database: str, change: Callable[[bytes], bytes]) -> None:
    """Every record of a database as `change` makes it; nobody has the store open."""
    with StoreFolder(folder) as store:
        disk = store.disk
        keys = list(disk._records.keys(database))
        with disk._file.writing() as transaction:
            for key in keys:
                found = pieces.get(disk._file, transaction, database, key)
                assert found is not None
                pieces.put(disk._file, transaction, database, key, change(bytes(found)))


def resealed(packed: bytes, *, version: int | None = None, codec: int | None = None) -> bytes:
    """A record with another number in its header, and a checksum that fits."""
    changed = bytearray(packed)
    if version is not None:
        changed[4:6] = version.to_bytes(2, "little")
    if codec is not None:
        changed[7] = codec
    changed[60:68] = xxhash.xxh3_64_intdigest(bytes(changed[:60] + changed[68:])).to_bytes(8, "little")
    return bytes(changed)


def stored(folder: Path) -> dict[tuple[str, bytes], bytes]:
    """Every value in a store's file but when it was used, byte for byte; nobody has the store open."""
    found = {}
    with lmdb.open(str(folder), max_dbs=8) as environment, environment.begin() as transaction:
        for database in ("pages", "sessions", "states", "pieces"):
            handle = environment.open_db(database.encode(), txn=transaction, create=False)
            found |= {(database, bytes(key)): bytes(value) for key, value in transaction.cursor(handle)}
    return found
