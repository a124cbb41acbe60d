"""Records of a later version: not read, never replaced, and no burden while they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kv_pages import SMALL, disk_tier, lose_pages, random_pages, read_back, store_on, text
from records import change_records, resealed, stored

from stratakv.storage import CorruptPageError, LaterVersionError, RecordError, TieredStore, page_key
from stratakv.storage.disk import record

TEXT = text(SMALL, 8)
PAGES = random_pages(SMALL, 8)
KEYS = [page_key(0, chain) for chain in TEXT.chains]
FOLDER = f"model_{bytes(range(16)).hex()}"
HONEST = record.pack(record.PAGE, bytes(16), KEYS[0], b"bytes", codec=1, raw_bytes=9, tokens=TEXT.tokens[0])


def one_bit(packed: bytes, place: int, bit: int) -> bytes:
    return packed[:place] + bytes([packed[place] ^ 1 << bit]) + packed[place + 1 :]


LATER = {
    "the next version": (resealed(HONEST, version=record.VERSION + 1), "version"),
    "the last version": (resealed(HONEST, version=0xFFFF), "version"),
    "another layout": (HONEST[:4] + b"\2\0" + bytes(range(100)), "version"),
    "the next version, its checksum elsewhere": (HONEST[:4] + b"\2\0" + HONEST[6:], "version"),
    "the next codec": (resealed(HONEST, codec=record.LAST_CODEC + 1), "codec"),
    "the last codec": (resealed(HONEST, codec=0xFF), "codec"),
    "ours": (HONEST, ""),
    "an earlier version": (resealed(HONEST, version=0), ""),
    "a flipped bit of the version": (one_bit(HONEST, 4, 3), ""),
    "a flipped bit of its other byte": (one_bit(HONEST, 5, 7), ""),
    "a flipped bit of the codec": (one_bit(HONEST, 7, 4), ""),
    "another magic": (b"SKVX" + resealed(HONEST, version=2)[4:], ""),
    "cut short": (resealed(HONEST, version=2)[:40], ""),
    "nothing": (b"", ""),
}


@pytest.mark.parametrize(("packed", "field"), LATER.values(), ids=LATER)
def test_which_records_are_a_later_versions(packed: bytes, field: str) -> None:
    known = record.beginnings()
    assert record.later_field(packed, known) == record.later_field(memoryview(packed), known) == field
    if packed != HONEST and field != "codec":
        with pytest.raises(RecordError, match=f"^{field}") as caught:
            record.unpack(packed, record.PAGE, bytes(16), KEYS[0])
        assert isinstance(caught.value, LaterVersionError) == bool(field)


def written(folder: Path, **changed: int) -> Path:
    """A folder with eight pages and a state, all of them a later version's; returns it."""
    store = store_on(disk_tier(folder / FOLDER), host=8)
    store.put(0, TEXT.chains, TEXT.tokens, PAGES)
    assert store.disk is not None
    store.disk.put_state(TEXT.chains[0], bytes(50_000))
    store.close()
    change_records(folder / FOLDER, "pages", lambda old: resealed(old, **changed))
    if "version" in changed:
        change_records(folder / FOLDER, "states", lambda old: resealed(old, **changed))
    return folder / FOLDER


@pytest.mark.parametrize("gpu", [None, 4])
def test_their_keys_are_taken(tmp_path: Path, gpu: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """The pages are computed again and used from memory; unneeded they go, and the others are as they were."""
    folder = written(tmp_path, version=2)
    before = stored(folder)
    store = store_on(disk_tier(folder), host=12, gpu=gpu)
    for _ in range(3):
        assert store.num_known(TEXT.chains, [0]) == 0
        pids = store.put(0, TEXT.chains, TEXT.tokens, PAGES)
        store.flush()
        assert torch.equal(read_back(store, pids), PAGES)
        assert store.num_known(TEXT.chains, [0]) == 8, "they are in memory"
        store.check_integrity()
        store.num_known([], [0])
        store.release(pids)
        store.check_integrity()
        assert store.host.num_free == 12
    assert caplog.text.count("a later version of stratakv wrote") == 1
    others = text(SMALL, 8, seed=1)
    store.release(store.put(0, others.chains, others.tokens, PAGES))
    store.flush()
    store.close()
    found = stored(folder)
    assert before.items() < found.items()
    assert len(found) == len(before) + 8


def test_pages_released_before_they_are_written(tmp_path: Path) -> None:
    store = store_on(disk_tier(written(tmp_path, version=2)), host=12)
    store.release(store.put(0, TEXT.chains, TEXT.tokens, PAGES))
    store.flush()
    assert store.host.num_free == 12
    store.check_integrity()
    store.close()


def test_a_page_that_is_found_to_be_theirs_is_not_replaced_or_deleted(tmp_path: Path) -> None:
    """It became theirs after it was counted."""
    folder = written(tmp_path, version=2)
    before = stored(folder)
    store = store_on(disk_tier(folder), host=12)
    pids = store.adopt(0, TEXT.chains, TEXT.tokens)
    with pytest.raises(CorruptPageError, match="version: 2, this program reads 1"):
        read_back(store, pids)
    lose_pages(store, pids)
    for pid, page in zip(pids.tolist(), PAGES, strict=True):
        store.replace(pid, page)
    store.flush()
    assert torch.equal(read_back(store, pids), PAGES)
    store.check_integrity()
    store.close()
    assert stored(folder) == before


def test_a_page_of_a_later_codec_gives_way_to_the_same_page(tmp_path: Path) -> None:
    store: TieredStore = store_on(disk_tier(written(tmp_path, codec=9)), host=12)
    assert store.num_known(TEXT.chains, [0]) == 0
    store.put(0, TEXT.chains, TEXT.tokens, PAGES)
    store.close()
    store = store_on(disk_tier(tmp_path / FOLDER), host=12)
    assert store.num_known(TEXT.chains, [0]) == 8
    assert torch.equal(read_back(store, store.adopt(0, TEXT.chains, TEXT.tokens)), PAGES)
    store.close()


def test_states_and_copies(tmp_path: Path) -> None:
    folder = written(tmp_path, version=2)
    before = stored(folder)
    theirs, ours = disk_tier(folder), disk_tier(tmp_path / "other")
    theirs.put_state(TEXT.chains[0], b"ours")
    with pytest.raises(LaterVersionError):
        theirs.get_state(TEXT.chains[0])
    with pytest.raises(LaterVersionError):
        ours.copy_pages(theirs, KEYS)
    assert theirs.num_later() == {"pages": 8, "states": 1}
    assert [*theirs.damaged_pages(), *theirs.damaged_states()] == []
    assert ours.num_pages == 0
    theirs.close()
    ours.close()
    assert stored(folder) == before
