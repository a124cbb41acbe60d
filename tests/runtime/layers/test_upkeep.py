"""An index is in step with the pages: the same state, however and whenever those came."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kv_pages import SMALL
from layer_kv import KV, PAGES, QUERIES, REPEATS, SIZE, filled, opened, put, reader_of
from torch import Tensor

from stratakv.retrieval.index import Index
from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.retrieval.stored import Geometry
from stratakv.runtime.layers import upkeep as module
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.upkeep import IndexUpkeep
from stratakv.storage import TieredStore

PARAMS = IndexParams(page_size=SIZE, sink=4, local=4)
LAST = QUERIES[:, SIZE - 1 :: SIZE]
"""The queries `[H, pages, D]` of each page's last token."""


@pytest.fixture
def store() -> Iterator[TieredStore]:
    with opened() as store:
        yield store


def index_of(name: str) -> Index:
    return make_index(name, PARAMS)


def upkeep_of(index: Index, pages: LayerPages, *, keep_queries: bool = False) -> IndexUpkeep:
    geometry = Geometry(KV[0, :, :0], 0, REPEATS)
    return IndexUpkeep(index, pages, reader_of(pages), geometry, keep_queries=keep_queries)


def seal(upkeep: IndexUpkeep, pages: LayerPages, end: int) -> None:
    """The next pages are computed here: the index learns their keys as they come, and the queries noted before."""
    start = len(pages.pids)
    upkeep.queries.note(LAST[:, start:end], 1.0)
    put(pages, end)
    upkeep.add(KV[0, :, start * SIZE : end * SIZE])


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def built(name: str, num_pages: int) -> dict[str, Tensor]:
    """The state of keys that come all at once, with no queries."""
    index = index_of(name)
    return index.export(index.build(KV[0, :, : num_pages * SIZE]))


@pytest.mark.parametrize("block", [3 * SIZE, SIZE - 1])
def test_page_by_page_and_from_the_store_are_as_at_once(
    store: TieredStore, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a page is longer than a block."""
    monkeypatch.setattr(module, "KEY_BLOCK", block)
    pages = LayerPages(store, 0)
    upkeep = upkeep_of(index_of("bounds"), pages)
    seal(upkeep, pages, 2)
    seal(upkeep, pages, 3)
    put(pages, PAGES)
    assert upkeep.indexed == 3 * SIZE
    upkeep.catch_up()
    assert upkeep.indexed == pages.sealed
    assert same(upkeep.export(), built("bounds", PAGES))


def test_an_index_learns_from_pages_that_are_longer_than_a_block(
    store: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEY_BLOCK", SIZE - 1)
    upkeep = upkeep_of(index_of("spectral"), filled(store, 5))
    upkeep.add_stored()
    assert same(upkeep.export(), built("spectral", 5))


def test_with_nothing_new_nothing_is_read_and_what_was_noted_stays(store: TieredStore) -> None:
    upkeep = upkeep_of(index_of("spectral"), filled(store, 5))
    upkeep.catch_up()
    read = store.counters.reads
    upkeep.queries.note(LAST[:, 5:6], 1.0)
    upkeep.catch_up()
    assert store.counters.reads == read > 0
    noted = upkeep.queries.take(1)
    assert noted is not None
    assert torch.equal(noted.flatten(0, 1), LAST[:, 5:6])


def test_queries_are_told_with_the_pages_that_they_are_of(store: TieredStore) -> None:
    """Those of pages that were not sealed in the end are forgotten."""
    index, pages, size = index_of("spectral"), LayerPages(store, 0), 6
    upkeep = upkeep_of(index, pages)
    upkeep.queries.note(LAST[:, 10:12], 1.0)
    upkeep.begin_span()
    upkeep.queries.note(LAST[:, :size], 1.0)
    put(pages, size)
    upkeep.catch_up()
    queries = LAST[:, :size].unflatten(0, (SMALL.num_heads, REPEATS))
    expected = index.export(index.build(KV[0, :, : size * SIZE], queries))
    assert same(upkeep.export(), expected)
    assert not same(upkeep.export(), built("spectral", size))


def test_a_rollback_takes_keys_and_what_was_learned_back(store: TieredStore) -> None:
    pages = LayerPages(store, 0)
    upkeep = upkeep_of(index_of("spectral"), pages)
    seal(upkeep, pages, 8)
    point, before = upkeep.snapshot(), upkeep.export()
    seal(upkeep, pages, 12)
    assert not same(upkeep.export(), before)
    pages.cut(8)
    upkeep.rollback(point)
    assert upkeep.indexed == 8 * SIZE
    assert same(upkeep.export(), before)


def test_a_fork_of_the_same_index_has_its_own_copy(store: TieredStore) -> None:
    index, pages, other = index_of("bounds"), LayerPages(store, 0), LayerPages(store, 0)
    upkeep, fork = upkeep_of(index, pages), upkeep_of(index, other)
    seal(upkeep, pages, 4)
    other.share(pages)
    read = store.counters.reads
    fork.follow(upkeep)
    assert store.counters.reads == read, "nothing had to be read"
    seal(upkeep, pages, 6)
    assert fork.indexed == 4 * SIZE
    assert same(fork.export(), built("bounds", 4))


@pytest.mark.parametrize("kept", [True, False])
def test_a_fork_of_another_index_is_built_from_the_pages_and_the_queries_that_were_kept(
    store: TieredStore, kept: bool
) -> None:
    pages, other = LayerPages(store, 0), LayerPages(store, 0)
    upkeep, fork = upkeep_of(index_of("bounds"), pages, keep_queries=kept), upkeep_of(index_of("spectral"), other)
    if kept:
        seal(upkeep, pages, 6)
    else:
        put(pages, 6)
        upkeep.catch_up()
    other.share(pages)
    fork.follow(upkeep)
    queries = LAST[:, :6].unflatten(0, (SMALL.num_heads, REPEATS)) if kept else None
    index = index_of("spectral")
    assert same(fork.export(), index.export(index.build(KV[0, :, : 6 * SIZE], queries)))


def test_an_exported_state_is_restored_and_an_unsound_one_is_not(
    store: TieredStore, caplog: pytest.LogCaptureFixture
) -> None:
    upkeep = upkeep_of(index_of("bounds"), filled(store, 5))
    assert upkeep.export() == {}
    upkeep.catch_up()
    exported = upkeep.export()
    read = store.counters.reads
    again = upkeep_of(index_of("bounds"), filled(store, 5))
    for wrong in ({}, {"bounds": exported["bounds"][:, :4]}, {**exported, "more": exported["bounds"]}):
        assert not again.restore(wrong)
        assert (again.state, again.indexed) == (None, 0)
    assert len(caplog.records) == 3
    assert again.restore(exported)
    assert again.indexed == 5 * SIZE
    assert same(again.export(), exported)
    assert store.counters.reads == read


@pytest.mark.parametrize("is_sound", [True, False])
def test_adopted_pages_are_read_with_what_another_sequence_learned(
    store: TieredStore, is_sound: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pages = LayerPages(store, 0)
    upkeep = upkeep_of(index_of("spectral"), pages)
    seal(upkeep, pages, 8)
    learned = upkeep.learned()
    assert learned["codes"].shape[1] == 0
    assert upkeep.indexed == 8 * SIZE
    if not is_sound:
        learned["moment"][0, 0, 0] = torch.nan
    again = upkeep_of(index_of("spectral"), filled(store, 8))
    again.adopt(learned)
    assert again.indexed == 8 * SIZE
    assert same(again.export(), upkeep.export()) == is_sound
    assert same(again.export(), built("spectral", 8)) == (not is_sound)
    assert len(caplog.records) == (not is_sound)
