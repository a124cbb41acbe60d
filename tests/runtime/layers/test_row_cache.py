"""Row caches against the pages they copy: whatever was cached, a read gives the pages' bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kv_pages import SMALL, store_on, text

from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.reserved_rows import ReservedRows
from stratakv.runtime.layers.row_cache import Arrival, RowCache
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import TieredStore

pytestmark = pytest.mark.usefixtures("read_by_host")
PAGES = 24
TOKENS = PAGES * SMALL.page_size
TEXT = text(SMALL, PAGES)
DATA = torch.randn(PAGES, SMALL.page_bytes // 4, generator=torch.Generator().manual_seed(0))
KV = DATA.view(PAGES, SMALL.num_heads, 2, SMALL.page_size, SMALL.head_dim).permute(2, 1, 0, 3, 4).flatten(2, 3)
"""`[2, G, tokens, D]`"""


@pytest.fixture
def store() -> Iterator[TieredStore]:
    store = store_on(None, SMALL, host=PAGES, gpu=16)
    store.put(0, TEXT.chains, TEXT.tokens, DATA.view(torch.uint8))
    yield store
    store.check_integrity()
    store.close()


def reader_through(store: TieredStore, cache: RowCache) -> PageReader:
    """A reader that has this row cache already."""
    workspace, pages = Workspace(SMALL, 0, torch.device("cpu")), LayerPages(store, 0)
    pages.pids = np.arange(PAGES)

    def no_damage(pids: list[int]) -> None:
        raise AssertionError(f"pages {pids} are damaged")

    reader = PageReader(pages, workspace, no_damage)
    reader._caches[cache.unit, cache.sides] = cache
    reader.begin_step(cache.num_entries * cache.unit)
    return reader


def reserved(store: TieredStore, layer: int, unit: int, sides: int, entries: int) -> RowCache | None:
    rows = ReservedRows.reserve(store, layer, unit, sides, entries)
    return None if rows is None else RowCache(rows)


def bring(reader: PageReader, cache: RowCache, ids: np.ndarray, unit: int) -> int:
    """What prefetching does with a guess; returns how many units came."""
    heads, units = cache.lacking(ids)
    for some_heads, some, staged in reader.fetch_ahead(heads, units, unit):
        cache.put(some_heads, some, staged)
    return len(units)


def ids_of(rng: np.random.Generator, count: int, unit: int) -> np.ndarray:
    return np.stack([np.sort(rng.choice(TOKENS // unit, count, replace=False)) for _ in range(SMALL.num_heads)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    unit=st.sampled_from([1, 2, 4]),
    sides=st.sampled_from([1, 2]),
    steps=st.lists(
        st.tuples(st.integers(1, 24), st.integers(0, 30), st.integers(0, 2**32 - 1)), min_size=1, max_size=12
    ),
    cut=st.integers(0, TOKENS),
)
def test_reads_are_the_pages_bytes(unit: int, sides: int, steps: list[tuple[int, int, int]], cut: int) -> None:
    """Steps of a read in two calls and a guess, and one cut."""
    store = store_on(None, SMALL, host=PAGES, gpu=16)
    store.put(0, TEXT.chains, TEXT.tokens, DATA.view(torch.uint8))
    cache = reserved(store, 0, unit, sides, 24 // unit)
    assert cache is not None
    reader = reader_through(store, cache)
    for number, (count, guessed, seed) in enumerate(steps):
        rng = np.random.default_rng(seed)
        ids = ids_of(rng, min(count, cache.num_entries, TOKENS // unit), unit)
        cache.begin_step()
        for some in np.array_split(ids, 2, axis=1):
            where = torch.from_numpy((some[..., None] * unit + np.arange(unit)).reshape(len(some), -1))
            expected = KV.gather(2, where[None, ..., None].expand(2, -1, -1, SMALL.head_dim))
            if sides == 2:
                keys, values = reader.keys_values(torch.from_numpy(some), unit)
                assert torch.equal(keys, expected[0])
            else:
                values = reader.values(torch.from_numpy(some), unit)
            assert torch.equal(values, expected[1])
            cache.check_integrity()
        if sides == 2:
            bring(reader, cache, ids_of(rng, min(guessed, TOKENS // unit), unit), unit)
            cache.check_integrity()
            entries = cache._find(ids)
            assert (entries >= 0).all(), "a guess took the place of what the last step read"
        if number == len(steps) // 2:
            cache.truncate(cut // unit)
            cache.check_integrity()
    cache.close()
    store.check_integrity()
    assert store._residency.reserved == {0: 0}


def test_what_was_read_lately_is_read_again_without_a_fetch(store: TieredStore) -> None:
    cache = reserved(store, 0, 1, 2, 40)
    assert cache is not None
    reader, counters = reader_through(store, cache), store.counters
    ids = torch.arange(20).expand(SMALL.num_heads, -1)
    cache.begin_step()
    reader.keys_values(ids, 1)
    moved = counters.host_to_gpu_bytes
    assert moved == 20 * SMALL.token_bytes
    cache.begin_step()
    reader.keys_values(ids + 1, 1)
    assert counters.host_to_gpu_bytes - moved == SMALL.token_bytes
    assert (counters.row_hits, counters.row_misses) == (19 * SMALL.num_heads, 21 * SMALL.num_heads)
    cache.close()


def test_a_right_guess_is_useful_and_a_wrong_one_wasted(store: TieredStore) -> None:
    cache = reserved(store, 0, 4, 2, 4)
    assert cache is not None
    reader, counters = reader_through(store, cache), store.counters
    ids = np.arange(2)[None].repeat(SMALL.num_heads, 0)
    cache.begin_step()
    reader.keys_values(torch.from_numpy(ids), 4)
    assert bring(reader, cache, ids + 2, 4) == 2 * SMALL.num_heads
    assert counters.prefetched_bytes == 2 * SMALL.page_bytes
    cache.begin_step()
    moved = counters.host_to_gpu_bytes
    reader.keys_values(torch.from_numpy(ids + 1), 4)
    assert counters.host_to_gpu_bytes == moved
    assert counters.useful_prefetched_bytes == SMALL.page_bytes
    cache.close()
    assert counters.wasted_prefetched_bytes == SMALL.page_bytes


def test_a_guess_keeps_what_it_wants_and_finds_here(store: TieredStore) -> None:
    """What lies here from earlier steps is no room for the rest of the guess."""
    cache = reserved(store, 0, 4, 2, 4)
    assert cache is not None
    reader = reader_through(store, cache)
    for units in ([0, 1], [2, 3]):
        cache.begin_step()
        reader.keys_values(torch.tensor([units] * SMALL.num_heads), 4)
    assert bring(reader, cache, np.array([[0, 1, 4, 5]] * SMALL.num_heads), 4) == 0
    assert bring(reader, cache, np.array([[0, 4, 5]] * SMALL.num_heads), 4) == 0, "unit 1 was wanted just now"
    cache.begin_step()
    reader.keys_values(torch.tensor([[2, 3]] * SMALL.num_heads), 4)
    assert bring(reader, cache, np.array([[0, 4, 5]] * SMALL.num_heads), 4) == SMALL.num_heads
    assert (cache._find(np.array([[0, 2, 3, 4]] * SMALL.num_heads)) >= 0).all()
    cache.close()


@pytest.mark.parametrize("then", ["read", "close"])
def test_nothing_takes_a_place_that_is_still_being_written(
    store: TieredStore, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = reserved(store, 0, 4, 2, 4)
    assert cache is not None
    waited: list[str] = []
    monkeypatch.setattr(Arrival, "wait", lambda self: waited.append(then))
    reader = reader_through(store, cache)
    cache.begin_step()
    bring(reader, cache, np.array([[7]] * SMALL.num_heads), 4)
    if then == "read":
        cache.begin_step()
        reader.keys_values(torch.tensor([[8]] * SMALL.num_heads), 4)
        assert waited
    cache.close()
    assert waited == [then]


def test_a_layers_pages_keep_a_quarter_of_the_pool(store: TieredStore) -> None:
    first, second = reserved(store, 0, 1, 2, 20), reserved(store, 0, 1, 2, 1000)
    assert first is not None
    assert second is not None
    assert (first.num_entries, second.num_entries) == (20, 12 * SMALL.page_size - 20)
    assert reserved(store, 0, 1, 2, 1) is None
    store.discard(store.open_page(0))
    first.close()
    second.close()


def test_without_a_device_pool_there_is_no_row_cache() -> None:
    store = store_on(None, SMALL, host=PAGES)
    assert reserved(store, 0, 1, 2, 20) is None
    store.close()


def test_a_unit_far_behind_finds_its_place(store: TieredStore) -> None:
    """The table of entries grows with the sequence."""
    cache = reserved(store, 0, 1, 2, 20)
    assert cache is not None
    cache.begin_step()
    staged = torch.zeros(2 * SMALL.num_heads, SMALL.head_dim)
    cache.read(np.full((SMALL.num_heads, 1), 5000), staged, lambda heads, units, unit, sides, out: None)
    assert len(cache.lacking(np.full((SMALL.num_heads, 1), 5000))[0]) == 0
    cache.check_integrity()
    cache.close()
