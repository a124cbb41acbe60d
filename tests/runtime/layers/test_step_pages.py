"""Pages of a step: the same bytes at the places that each kind names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from kv_pages import SMALL, store_on, text
from torch import Tensor

from stratakv.runtime.layers import page_reader
from stratakv.runtime.layers.device_rows import DeviceRows
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.step_pages import EntryPages, PoolPages, SpanPages, StepPages, is_same
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import TieredStore

PAGES, GROUPS, SIZE = 24, SMALL.num_heads, SMALL.page_size
TEXT = text(SMALL, PAGES)
DATA = torch.randn(PAGES, GROUPS, 2, SIZE, SMALL.head_dim, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[(40, "PoolPages"), (32, "EntryPages"), (1, "SpanPages")], ids=lambda param: param[1])
def reader(request: pytest.FixtureRequest) -> Iterator[tuple[PageReader, str]]:
    slots, kind = request.param
    store = store_on(None, SMALL, host=PAGES, gpu=slots)
    pids = store.put(0, TEXT.chains, TEXT.tokens, DATA.flatten(1).view(torch.uint8))
    pages = LayerPages(store, 0)
    pages.pids = pids
    if kind == "EntryPages":
        store.reserve(0, 10)  # so that not all pages fit any more
    yield PageReader(pages, Workspace(SMALL, 64, torch.device("cpu")), no_damage), kind
    store.close()


def no_damage(pids: list[int]) -> None:
    raise AssertionError(f"pages {pids} are damaged")


def bytes_at(pages: StepPages, store: TieredStore, ids: Tensor, unit: int) -> Tensor:
    """K and V `[G, n, 2, unit, D]`, or V alone, where units of a step's pages are."""
    assert store.gpu is not None
    pool = store.gpu.data.view(torch.float32) if pages.pool is None else pages.pool
    pool = pool.view(-1, GROUPS, pages.sides, SIZE * 2 // pages.sides, SMALL.head_dim)
    units = pool.shape[3] // unit
    slots = torch.from_numpy(pages.slots)[ids // units]
    cut = pool.unflatten(3, (units, unit)).transpose(2, 3)  # [slots, G, U, 2, unit, D]
    return cut[slots, torch.arange(GROUPS)[:, None], ids % units]


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_units_are_found_where_they_are_named(
    reader: tuple[PageReader, str], unit: int, waits: bool, alone: bool
) -> None:
    """Three steps, the last of which reads less than it might; keys and values, or values alone."""
    (of_layer, kind), random = reader, torch.Generator().manual_seed(1)
    pages = of_layer.step_pages(unit, 12, waits=waits, values_alone=alone)
    assert pages is not None
    assert type(pages).__name__ == ("HostEntries" if waits and kind != "SpanPages" else kind)
    assert pages.waits == (waits or kind == "SpanPages")
    for count in (8, 8, 5):
        drawn = [torch.randperm(PAGES * SIZE // unit, generator=random)[:8].sort().values for _ in range(GROUPS)]
        ids = torch.stack(drawn)
        ids[:, count:] = 0
        found = pages.find(ids, torch.full((GROUPS,), count), count)[:, :count]
        expected = bytes_at(Own(), of_layer._store, ids[:, :count], unit)
        there = bytes_at(pages, of_layer._store, found.long(), unit)
        assert torch.equal(there[:, :, -1] if alone else there, expected[:, :, -1] if alone else expected)


class Own(StepPages):
    """The pages themselves, as they were put."""

    waits = False

    def __init__(self) -> None:
        super().__init__(np.arange(PAGES), 1, 2, DATA)

    def find(self, ids: Tensor, counts: Tensor, count: int) -> Tensor:
        return ids


def test_the_span_buffer_must_hold_what_is_chosen_and_the_open_page() -> None:
    store = store_on(None, SMALL, host=PAGES, gpu=2)
    pages = LayerPages(store, 0)
    pages.pids = store.put(0, TEXT.chains, TEXT.tokens, DATA.flatten(1).view(torch.uint8))
    reader = PageReader(pages, Workspace(SMALL, 16, torch.device("cpu")), no_damage)
    assert isinstance(reader.step_pages(1, 16), SpanPages)
    assert reader.step_pages(1, 17) is None
    store.close()


def test_pages_that_are_longer_than_a_block_are_brought_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_reader, "KEY_BLOCK", SIZE - 1)
    store = store_on(None, SMALL, host=PAGES, gpu=PAGES)
    pages = LayerPages(store, 0)
    pages.pids = store.put(0, TEXT.chains, TEXT.tokens, DATA.flatten(1).view(torch.uint8))
    found = PageReader(pages, Workspace(SMALL, 40, torch.device("cpu")), no_damage).step_pages(1, 8)
    assert isinstance(found, PoolPages)
    assert sorted(found.slots.tolist()) == list(range(PAGES))
    store.close()


def test_what_had_no_room_looks_again_when_others_have_gone() -> None:
    """Until then it takes none from pages of its own, again and again."""
    store = store_on(None, SMALL, host=PAGES, gpu=20)
    pages = LayerPages(store, 0)
    pages.pids = store.put(0, TEXT.chains, TEXT.tokens, DATA.flatten(1).view(torch.uint8))
    others = store.reserve(0, 15)
    reader = PageReader(pages, Workspace(SMALL, 40, torch.device("cpu")), no_damage)
    assert isinstance(reader.step_pages(1, 24), SpanPages)
    store.unreserve(0, others[:5])
    assert isinstance(reader.step_pages(1, 24), SpanPages)
    store.unreserve(0, others[5:])
    assert isinstance(reader.step_pages(1, 24), EntryPages)
    reader.close()
    store.close()


def test_rows_that_made_room_are_no_longer_what_was_recorded() -> None:
    store = store_on(None, SMALL, host=PAGES, gpu=32)
    pages = LayerPages(store, 0)
    pages.pids = store.put(0, TEXT.chains, TEXT.tokens, DATA.flatten(1).view(torch.uint8))
    store.reserve(0, 10)
    reader = PageReader(pages, Workspace(SMALL, 40, torch.device("cpu")), no_damage)
    before, same = reader.step_pages(1, 8), reader.step_pages(1, 8)
    assert before is not None
    assert same is not None
    assert is_same(before.reads, same.reads)
    (rows,) = reader._kept()
    assert isinstance(rows, DeviceRows)
    rows.make_room(5000)
    after = reader.step_pages(1, 8)
    assert after is not None
    assert not is_same(before.reads, after.reads)
    assert before.are_there
    reader.close()
    assert not before.are_there
    store.close()


def test_the_same_memory_is_the_same() -> None:
    some = torch.zeros(4)
    assert is_same((some,), (some.view(4),))
    assert not is_same((some,), (some[:2],))
    assert not is_same((some,), (some.clone(),))
    assert not is_same((some,), ())
