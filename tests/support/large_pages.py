"""Sixty large pages of random bytes, written to a disk tier and damaged there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from kv_pages import LARGE, disk_tier, random_pages, store_on, text

from stratakv.storage import DiskTier, TieredStore

TEXT = text(LARGE, 60)
PAGES = random_pages(LARGE, 60)


def write_pages(folder: Path, count: int = 60) -> None:
    store = store_on(disk_tier(folder), LARGE, host=count)
    store.put(0, TEXT.chains[:count], TEXT.tokens[:count], PAGES[:count])
    store.close()


def adopted(folder: Path, count: int, **options: int) -> tuple[TieredStore, np.ndarray]:
    """A new store on `folder` and the ids of its first pages, none of them read yet."""
    store = store_on(disk_tier(folder), LARGE, host=8, **options)
    return store, store.adopt(0, TEXT.chains[:count], TEXT.tokens[:count])


def overwrite(folder: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change a stored value behind the store's back; None deletes it."""
    with lmdb.open(str(folder), max_dbs=3) as environment:
        pages = environment.open_db(b"pages")
        with environment.begin(db=pages, write=True) as transaction:
            value = change(transaction.get(key))
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)


def all_keys(disk: DiskTier) -> list[bytes]:
    """Every page key, read by a sweep that keeps everything."""
    keys: list[bytes] = []

    def keep(key: bytes) -> bool:
        keys.append(key)
        return True

    assert disk.sweep(keep) == 0
    return keys
