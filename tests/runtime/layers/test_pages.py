"""One layer's pages: what is sealed is in the store under its name, and the open page is the layer's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kv_pages import read_back
from layer_kv import KV, PAGES, SIZE, TEXT, filled, opened
from torch import Tensor

from stratakv.runtime.layers import pages as module
from stratakv.runtime.layers.pages import LayerPages
from stratakv.storage import CapacityError, TieredStore


def add(pages: LayerPages, start: int, end: int) -> None:
    for at in range(start, end):
        pages.add(*KV[:, :, at])


def as_stored(num_pages: int) -> Tensor:
    """The first pages as bytes, each `[G, 2, L, D]`."""
    return KV[:, :, : num_pages * SIZE].unflatten(2, (num_pages, SIZE)).permute(2, 1, 0, 3, 4).flatten(1)


def stored(store: TieredStore, pages: LayerPages) -> Tensor:
    return read_back(store, pages.pids).view(torch.float32)


def test_tokens_added_one_by_one_fill_a_page_that_is_then_sealed() -> None:
    with opened() as store:
        pages = LayerPages(store, 0)
        add(pages, 0, SIZE - 1)
        assert torch.equal(torch.stack(pages.tail), KV[:, :, : SIZE - 1])
        assert not pages.is_full
        add(pages, SIZE - 1, SIZE)
        assert pages.is_full
        before = pages.pids
        keys = pages.seal(TEXT.chains[0], TEXT.tokens[0])
        assert pages.pids is not before
        add(pages, SIZE, SIZE + 1)
        assert (pages.sealed, pages.tail_len) == (SIZE, 1)
        assert torch.equal(stored(store, pages), as_stored(1))
        assert torch.equal(pages.tail_copy(), KV[:, :, SIZE : SIZE + 1])
        pages.close()
        add(pages, SIZE, 2 * SIZE)  # where the sealed page was
        assert torch.equal(keys, KV[0, :, :SIZE]), "not a copy"


def test_whole_pages_are_laid_out_as_sealed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the store is handed at a time."""
    monkeypatch.setattr(module, "PUT_PAGES", 3)
    with opened() as store:
        pages = filled(store, 7)
        assert pages.sealed == 7 * SIZE
        assert torch.equal(stored(store, pages), as_stored(7))


def test_a_step_writes_where_the_open_page_lies_until_that_is_another() -> None:
    with opened() as store:
        pages = LayerPages(store, 0)
        add(pages, 0, 1)
        run, tokens = pages.begin_step()
        run.kv[:, :, tokens - 1] = KV[:, :, 1]
        assert tokens == 2
        assert torch.equal(torch.stack(pages.tail), KV[:, :, :2])
        assert pages.begin_step()[0] is run
        pages.drop_tail()
        elsewhere = store.open_page(0)  # has the place of the one before
        add(pages, 0, 1)
        other, tokens = pages.begin_step()
        assert tokens == 2
        other.kv[:, :, 1] = KV[:, :, 1]
        assert torch.equal(torch.stack(pages.tail), KV[:, :, :2])
        store.discard(elsewhere)


def test_another_tail_needs_no_further_page() -> None:
    with opened(host=1) as store:
        pages = LayerPages(store, 0)
        pages.set_tail(KV[:, :, :3])
        pages.set_tail(KV[:, :, 4:6])
        assert torch.equal(pages.tail_copy(), KV[:, :, 4:6])
        pages.set_tail(KV[:, :, :0])
        assert pages.tail_copy().shape == KV[:, :, :0].shape
        assert store.host.num_free == 1


def test_a_page_that_finds_no_room_is_still_the_open_one() -> None:
    with opened(host=1, gpu=2) as store:
        pages, other = LayerPages(store, 0), filled(store, 1)
        add(pages, SIZE, 2 * SIZE)
        with pytest.raises(CapacityError, match="host tier is full"):
            pages.seal(TEXT.chains[1], TEXT.tokens[1])
        assert (len(pages.pids), pages.is_full) == (0, True)
        assert torch.equal(pages.tail_copy(), KV[:, :, SIZE : 2 * SIZE])
        other.close()
        pages.seal(TEXT.chains[1], TEXT.tokens[1])
        assert torch.equal(stored(store, pages), as_stored(2)[1:])


def test_each_holds_what_it_shares_until_it_gives_it_up() -> None:
    with opened() as store:
        first, second = filled(store, 5), LayerPages(store, 0)
        second.share(first)
        first.cut(2)
        assert (first.sealed, store.host.num_pages) == (2 * SIZE, 5)
        first.close()
        assert torch.equal(stored(store, second), as_stored(5))
        second.cut(3)
        assert store.host.num_pages == 3
        second.close()
        assert store.host.num_free == PAGES


def test_adopted_pages_take_the_place_of_the_open_one() -> None:
    with opened() as store:
        first, second = filled(store, 4), LayerPages(store, 0)
        second.adopt(TEXT.chains[:1], TEXT.tokens[:1])
        second.set_tail(KV[:, :, SIZE : SIZE + 2])
        second.adopt(TEXT.chains[1:3], TEXT.tokens[1:3])
        assert np.array_equal(second.pids, first.pids[:3])
        assert (second.sealed, second.tail_len, store.host.num_filling) == (3 * SIZE, 0, 0)
