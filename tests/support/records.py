"""Where a store's records lie in LMDB's file, and damage to them."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np


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
