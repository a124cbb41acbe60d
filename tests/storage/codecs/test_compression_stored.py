"""Approximate pages in a store, on a real LMDB file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from codecs_under_test import PROFILE
from half_pages import COUNT, INT4, KEYS, LAYOUT, LOSSY, PAGES, TEXT, ZSTD, Clock
from kv_pages import FINGERPRINT, arena, disk_tier, read_back

from stratakv.storage import TieredStore
from stratakv.storage.codecs import make_codec
from stratakv.storage.codecs.compression import (
    AdaptiveCompression,
    make_compression,
)
from stratakv.storage.codecs.int4 import Int4Codec
from stratakv.storage.disk import record


def adaptive_store(folder: Path, *, host: int, codec: str = "adaptive") -> TieredStore:
    return TieredStore(
        LAYOUT, 1, host=arena("host", LAYOUT, host), disk=disk_tier(folder), codec=codec, profiles={0: PROFILE}
    )


def codes_on_disk(folder: Path) -> dict[bytes, int]:
    """What the records' headers say, read past the store."""
    with lmdb.open(str(folder), max_dbs=3, readonly=True) as environment, environment.begin() as transaction:
        pages = environment.open_db(b"pages", txn=transaction, create=False)
        return {
            bytes(key): record.unpack(value, record.PAGE, FINGERPRINT, bytes(key)).codec
            for key, value in transaction.cursor(db=pages)
        }


def approximated(page: torch.Tensor) -> torch.Tensor:
    codec, out = Int4Codec(LAYOUT), np.empty(LAYOUT.page_bytes, dtype=np.uint8)
    codec.decode(memoryview(codec.encode(page.numpy())), out)
    return torch.from_numpy(out)


def put_at(store: TieredStore, share: float, pages: slice) -> np.ndarray:
    store.compression.share = share
    pids = store.put(0, TEXT.chains[pages], TEXT.tokens[pages], PAGES[pages])
    store.flush()
    return pids


def test_pages_of_both_codecs_come_back(tmp_path: Path) -> None:
    """Exact while they are in memory. From disk the lossless ones are exact, and the others are what four bits hold,
    also when they have come and gone twice, and for a program that writes nothing but lossless pages."""
    store = adaptive_store(tmp_path / "s", host=60)
    pids = put_at(store, 0.5, slice(60))
    assert torch.equal(read_back(store, pids), PAGES[:60])
    store.compression = make_compression("zstd", LAYOUT)
    put = store.put(0, TEXT.chains[60:], TEXT.tokens[60:], PAGES[60:])
    store.flush()
    for _ in range(2):
        assert store.is_resident(pids).sum() == 0
        found = read_back(store, pids)
        store.flush()
        read_back(store, put)
    store.close()
    codes = codes_on_disk(tmp_path / "s")
    expected = [PAGES[i] if codes[key] == ZSTD else approximated(PAGES[i]) for i, key in enumerate(KEYS[:60])]
    assert torch.equal(found, torch.stack(expected))
    counts = np.bincount([codes[key] for key in KEYS[:60]], minlength=3)
    assert counts[ZSTD] > 15
    assert counts[INT4] > 15
    assert {codes[key] for key in KEYS[60:]} == {ZSTD}
    lossless = adaptive_store(tmp_path / "s", host=60, codec="zstd")
    assert torch.equal(read_back(lossless, lossless.adopt(0, TEXT.chains[:60], TEXT.tokens[:60])), found)
    lossless.close()


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_pages_are_exact_until_they_left_memory_and_err_once(tmp_path: Path, name: str) -> None:
    """Also after they came back, left and came back again, and for whoever opens the file next."""
    expected, codec = torch.empty_like(PAGES[:60]), make_codec(name, LAYOUT, PROFILE)
    for page, out in zip(PAGES[:60].numpy(), expected.numpy(), strict=True):
        codec.decode(memoryview(codec.encode(page)), out)
    if codec.keeps_first:
        expected[0] = PAGES[0]
    store = adaptive_store(tmp_path / "s", host=60, codec=name)
    pids = put_at(store, 0.0, slice(60))
    assert torch.equal(read_back(store, pids), PAGES[:60])
    others = put_at(store, 0.0, slice(60, COUNT))
    for _ in range(2):
        assert store.is_resident(pids).sum() == 0
        assert torch.equal(read_back(store, pids), expected)
        read_back(store, others)
    store.check_integrity()
    store.close()
    codes = codes_on_disk(tmp_path / "s")
    assert codes.pop(KEYS[0]) == (ZSTD if codec.keeps_first else codec.code)
    assert set(codes.values()) == {codec.code}
    again = adaptive_store(tmp_path / "s", host=60, codec=name)
    assert torch.equal(read_back(again, again.adopt(0, TEXT.chains[:60], TEXT.tokens[:60])), expected)
    again.close()


def slow(read: Callable[..., dict[int, str]], clock: Clock, seconds: float) -> Callable[..., dict[int, str]]:
    def reading(keys: list[bytes], *rest: object) -> dict[int, str]:
        clock.now += seconds * len(keys)
        return read(keys, *rest)

    return reading


def test_pages_written_after_slow_reads_are_approximate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store measures its own reads: pages from before stay lossless, later ones do not."""
    store, clock = adaptive_store(tmp_path / "s", host=16), Clock()
    store.compression = AdaptiveCompression(LAYOUT, clock=clock)
    assert store.disk is not None
    monkeypatch.setattr(store.disk, "read_pages", slow(store.disk.read_pages, clock, seconds=0.01))
    first = np.concatenate([store.put(0, TEXT.chains[i : i + 8], TEXT.tokens[i : i + 8], PAGES[i : i + 8])
                            for i in range(0, 48, 8)])  # fmt: skip
    store.flush()
    for start in (0, 8, 16, 24):
        clock.now += 0.001
        read_back(store, first[start : start + 8])
    assert store.compression.share == 1.0
    store.put(0, TEXT.chains[100:108], TEXT.tokens[100:108], PAGES[100:108])
    store.flush()
    store.check_integrity()
    store.close()
    codes = codes_on_disk(tmp_path / "s")
    assert {codes[key] for key in KEYS[:48]} == {ZSTD}
    assert {codes[key] for key in KEYS[100:108]} == {INT4}


def test_approximate_pages_take_a_third_of_the_room(tmp_path: Path) -> None:
    written = {}
    for name, share in (("lossless", 0.0), ("approximate", 1.0)):
        store = adaptive_store(tmp_path / name, host=COUNT)
        put_at(store, share, slice(COUNT))
        written[name] = store.counters.host_to_disk_bytes / (COUNT * LAYOUT.page_bytes)
        store.close()
    assert written["approximate"] < 0.35
    assert written["lossless"] > 0.6
