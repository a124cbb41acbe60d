"""What `num_known` has counted is there when it is adopted, whatever the writer does to the disk in between."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from kv_pages import LARGE, disk_tier, random_pages, read_back, store_on, text

from stratakv.storage import StorageFullError, TieredStore

COUNT = 3
TEXT, PAGES = text(LARGE, COUNT), random_pages(LARGE, COUNT)
PATIENCE_S = 30


def put_and_release(store: TieredStore) -> None:
    store.release(store.put(0, TEXT.chains, TEXT.tokens, PAGES))


def adopt_and_read(store: TieredStore) -> None:
    pids = store.adopt(0, TEXT.chains, TEXT.tokens)
    np.testing.assert_array_equal(read_back(store, pids).numpy(), PAGES.numpy())
    store.check_integrity()


def test_room_is_made_between(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    put_and_release(store)
    store.close()
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    store.chains_to_keep = set
    assert store.num_known(TEXT.chains, [0]) == COUNT
    assert store.make_room(64 << 20) == 0
    adopt_and_read(store)
    assert store.num_known([], [0]) == 0
    assert store.make_room(64 << 20) == 0, "pages in use were removed"
    store.close()


def test_they_may_go_when_something_else_was_counted(tmp_path: Path) -> None:
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    store.chains_to_keep = set
    put_and_release(store)
    store.flush()
    assert store.num_known(TEXT.chains, [0]) == COUNT
    assert store.num_known(text(LARGE, 1, seed=1).chains, [0]) == 0
    assert store.make_room(64 << 20) == COUNT
    assert store.num_known(TEXT.chains, [0]) == 0
    store.close()


def test_the_disk_fails_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that nobody holds and only memory has are forgotten then, but for these."""
    store = store_on(disk_tier(tmp_path / "s"), LARGE, host=COUNT)
    has_begun, may_fail = threading.Event(), threading.Event()

    def fail(records: object) -> None:
        has_begun.set()
        assert may_fail.wait(PATIENCE_S)
        raise StorageFullError("the disk is gone")

    monkeypatch.setattr(store.disk, "write_pages", fail)
    put_and_release(store)
    assert has_begun.wait(PATIENCE_S)
    assert store.num_known(TEXT.chains, [0]) == COUNT
    may_fail.set()
    with pytest.raises(StorageFullError, match="the disk is gone"):
        store.flush()
    adopt_and_read(store)
    store.close()
