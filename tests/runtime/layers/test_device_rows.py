"""Row caches that the device keeps: the pages' bytes, whatever was cached, and nothing that the host would wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pages import SMALL, disk_tier, store_on, text
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from stratakv.kernels.fetch_units import Wanted
from stratakv.runtime.bench.slow_links import SlowLink
from stratakv.runtime.layers import device_rows
from stratakv.runtime.layers.device_rows import DeviceRows, is_reached
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.reserved_rows import ReservedRows
from stratakv.runtime.layers.row_cache import RowCache
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import Arena, TieredStore

PAGES = 24
TOKENS = PAGES * SMALL.page_size
TEXT = text(SMALL, PAGES)
DATA = torch.randn(PAGES, SMALL.page_bytes // 4, generator=torch.Generator().manual_seed(0))
KV = DATA.view(PAGES, SMALL.num_heads, 2, SMALL.page_size, SMALL.head_dim).permute(2, 1, 0, 3, 4).flatten(2, 3)
"""`[2, G, tokens, D]`"""
CPU = torch.device("cpu")


def filled(folder: Path | None = None, *, host: int = PAGES, gpu: int = 16) -> TieredStore:
    store = store_on(None if folder is None else disk_tier(folder), SMALL, host=host, gpu=gpu)
    store.put(0, TEXT.chains, TEXT.tokens, DATA.view(torch.uint8))
    return store


@pytest.fixture
def store() -> Iterator[TieredStore]:
    store = filled()
    yield store
    store.check_integrity()
    store.close()


def reader_of(store: TieredStore) -> PageReader:
    pages = LayerPages(store, 0)
    pages.pids = np.arange(PAGES)

    def no_damage(pids: list[int]) -> None:
        raise AssertionError(f"pages {pids} are damaged")

    return PageReader(pages, Workspace(SMALL, 0, CPU), no_damage)


def rows_in(store: TieredStore, unit: int = 1, sides: int = 2, entries: int = 24) -> DeviceRows:
    rows = ReservedRows.reserve(store, 0, unit, sides, entries)
    assert rows is not None
    return DeviceRows(rows)


def ids_of(rng: np.random.Generator, count: int, unit: int) -> Tensor:
    drawn = [np.sort(rng.choice(TOKENS // unit, count, replace=False)) for _ in range(SMALL.num_heads)]
    return torch.from_numpy(np.stack(drawn))


def expected(ids: Tensor, unit: int) -> Tensor:
    where = (ids.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)
    return KV.gather(2, where[None, ..., None].expand(2, -1, -1, SMALL.head_dim))


@settings(max_examples=60, deadline=None)
@given(
    unit=st.sampled_from([1, 2, 4]),
    sides=st.sampled_from([1, 2]),
    steps=st.lists(st.tuples(st.integers(1, 24), st.integers(0, 2**32 - 1)), min_size=1, max_size=12),
    cut=st.integers(0, TOKENS),
)
def test_reads_are_the_pages_bytes(unit: int, sides: int, steps: list[tuple[int, int]], cut: int) -> None:
    """Steps of a read in two calls, with one cut between."""
    store = filled()
    reader = reader_of(store)
    for number, (count, seed) in enumerate(steps):
        ids = ids_of(np.random.default_rng(seed), min(count, TOKENS // unit), unit)
        reader.begin_step(ids.shape[1] * unit)
        for some in ids.tensor_split(2, 1):
            found = reader.keys_values(some, unit) if sides == 2 else [None, reader.values(some, unit)]
            for mine, kv in zip(found, expected(some, unit), strict=True):
                assert mine is None or torch.equal(mine, kv)
        if number == len(steps) // 2:
            reader.truncate(cut // unit * unit)
    reader.close()
    store.check_integrity()
    assert store._residency.reserved == {0: 0}


def test_what_was_read_lately_is_read_again_without_a_fetch(store: TieredStore) -> None:
    reader, counters = reader_of(store), store.counters
    ids = torch.arange(20).expand(SMALL.num_heads, -1)
    for moved in (0, 1):
        reader.begin_step(20)
        reader.keys_values(ids + moved, 1)
    assert (counters.row_hits, counters.row_misses) == (0, 0), "nobody has asked the device yet"
    reader.count()
    assert (counters.row_hits, counters.row_misses) == (19 * SMALL.num_heads, 21 * SMALL.num_heads)
    assert counters.host_to_gpu_bytes == 21 * SMALL.token_bytes
    assert reader.row_caches() == [], "the host keeps none beside it"
    reader.close()


def test_nothing_of_a_read_returns_to_the_host(store: TieredStore) -> None:
    """Tensors without numbers can be read all the same: no number is looked at, and no shape follows from one."""
    rows = rows_in(store)
    ids, out = ids_of(np.random.default_rng(0), 9, 1), torch.empty(2 * SMALL.num_heads * 9, SMALL.head_dim)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        table = fake.from_tensor(torch.arange(PAGES, dtype=torch.int32))
        for _ in range(2):
            rows.begin_step()
            rows.read(fake.from_tensor(ids), store.host, table, fake.from_tensor(out))
        rows.truncate(5)
        with pytest.raises(DynamicOutputShapeException):
            fake.from_tensor(ids).nonzero()
    rows.close()


def test_a_text_of_which_a_part_is_on_disk_is_read_by_the_host(tmp_path: Path) -> None:
    """And by the device again when all of it is back; no bit differs."""
    store = filled(tmp_path / "kv", host=PAGES + 8)
    reader, ids = reader_of(store), ids_of(np.random.default_rng(1), 10, 1)

    def read() -> type:
        reader.begin_step(10)
        assert torch.equal(torch.stack(reader.keys_values(ids, 1)), expected(ids, 1))
        (cache,) = reader._kept()
        return type(cache)

    assert read() is DeviceRows
    store.flush()
    with store.still():
        store._residency.evict(store.host, store._table.host_slot[[3]])
    assert read() is RowCache
    store.prefetch(np.arange(PAGES), lambda: False)
    assert read() is DeviceRows
    reader.close()
    store.close()


def test_a_link_that_is_held_to_a_speed_is_not_passed_by(store: TieredStore) -> None:
    store.links.host = SlowLink(1)
    reader, ids = reader_of(store), ids_of(np.random.default_rng(3), 10, 1)
    reader.begin_step(10)
    assert torch.equal(torch.stack(reader.keys_values(ids, 1)), expected(ids, 1))
    assert len(reader.row_caches()) == 1
    reader.close()


def test_a_text_that_lies_in_the_pool_is_read_there() -> None:
    store = filled(gpu=PAGES + 1)
    reader, ids = reader_of(store), ids_of(np.random.default_rng(2), 7, 2)
    reader.begin_step(None)
    reader.pages(np.arange(PAGES))  # moves all of them up
    moved, reads = store.counters.host_to_gpu_bytes, store.counters.gpu_reads
    reader.begin_step(14)
    assert torch.equal(torch.stack(reader.keys_values(ids, 2)), expected(ids, 2))
    assert torch.equal(reader.values(ids, 2), expected(ids, 2)[1])
    assert store.counters.host_to_gpu_bytes == moved
    assert store.counters.gpu_reads == reads + 2 * 4
    assert reader._kept() == []
    store.close()


def test_the_table_grows_with_the_text(store: TieredStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds stays, and units that were not there before are not."""
    monkeypatch.setattr(device_rows, "_UNITS", 3)
    rows, out = rows_in(store), torch.empty(2 * SMALL.num_heads * 5, SMALL.head_dim)
    for last in (2, 3, 4, 5, PAGES):
        for begin in (0, last * SMALL.page_size - 5):
            ids = torch.arange(begin, begin + 5).expand(SMALL.num_heads, -1)
            rows.begin_step()
            rows.read(ids, store.host, torch.arange(last, dtype=torch.int32), out)
            assert torch.equal(out.view(2, SMALL.num_heads, 5, -1), expected(ids, 1))
    rows.close()


def test_a_step_that_reads_more_than_there_is_room_for_is_a_fault_of_ours(store: TieredStore) -> None:
    rows, out = rows_in(store, entries=6), torch.empty(2 * SMALL.num_heads * 5, SMALL.head_dim)
    rows.begin_step()
    ids, table = torch.arange(5).expand(SMALL.num_heads, -1), torch.arange(PAGES, dtype=torch.int32)
    while rows._asked_in_step + 5 <= rows.num_entries:
        rows.read(ids, store.host, table, out)
    with pytest.raises(AssertionError, match="a step would lose what it reads"):
        rows.read(ids, store.host, table, out)
    rows.close()


@pytest.mark.parametrize("gpu", [PAGES + 4, 8], ids=["in the pool", "in host memory"])
def test_what_the_device_reads_is_not_the_oldest(gpu: int) -> None:
    """Of two texts the one that nobody reads leaves first."""
    store = filled(gpu=gpu)
    read, idle = reader_of(store), np.arange(PAGES // 2, PAGES)
    read._pages.pids = np.arange(PAGES // 2)
    if gpu > PAGES:
        read.pages(np.arange(PAGES // 2))
    store.touch(idle)
    read.begin_step(5)
    assert read._read_on_device(torch.arange(5).expand(SMALL.num_heads, -1), 1, 2, torch.empty(20, SMALL.head_dim))
    read.count()
    assert (
        store.host.last_use[store._table.host_slot[:5]].min() > store.host.last_use[store._table.host_slot[idle]].max()
    )
    store.close()


def test_a_fetch_that_fails_leaves_no_unit_that_has_not_come(
    store: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, ids = reader_of(store), torch.arange(5).expand(SMALL.num_heads, -1)
    fetch = device_rows.fetch_units

    def fails(*given: object) -> None:
        raise RuntimeError("no launch")

    monkeypatch.setattr(device_rows, "fetch_units", fails)
    reader.begin_step(5)
    with pytest.raises(RuntimeError, match="no launch"):
        reader.keys_values(ids, 1)
    monkeypatch.setattr(device_rows, "fetch_units", fetch)
    assert torch.equal(torch.stack(reader.keys_values(ids, 1)), expected(ids, 1))
    reader.close()


@pytest.mark.parametrize("fault", ["raises", "reads other bytes", "has no kernel", None])
def test_memory_that_a_device_cannot_read_is_not_read_by_it(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once, when all of the memory is pinned."""
    arena, asked = Arena("host", 4096, 512, CPU), []
    arena.data.fill_(7)
    arena.settle(arena.take(3, 0)[2:], np.array([5]), 0)
    asks = device_rows._copies_a_page

    def copies(source: Tensor, wanted: object, out: Tensor) -> None:
        assert isinstance(wanted, Wanted)
        assert wanted.table.tolist() == [2], "a page that nobody writes"
        asked.append(source)
        if fault == "raises":
            raise ValueError("Pointer argument cannot be accessed")
        out.fill_(7 if fault is None else 8)

    monkeypatch.setattr(device_rows, "_copies_a_page", lambda arena, device: asks(arena, CPU))
    monkeypatch.setattr(device_rows, "fetch_units", copies)
    monkeypatch.setattr(device_rows, "reaches_from", lambda *_: fault != "has no kernel")
    device = torch.device("cuda")
    assert not is_reached(arena, device)
    assert not asked
    monkeypatch.setattr(Arena, "is_pinned", True)
    assert is_reached(arena, device) is is_reached(arena, device) is (fault is None)
    assert len(asked) == (fault != "has no kernel")
    assert ("cannot read host memory itself" in caplog.text) is (fault not in (None, "has no kernel"))
