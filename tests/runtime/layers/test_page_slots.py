"""Slots as a tensor: made again when pages come or go, and only then."""

from __future__ import annotations

import numpy as np
import torch
from kv_pages import SMALL, random_pages, store_on, text

from stratakv.runtime.layers.page_slots import PageSlots
from stratakv.runtime.layers.pages import LayerPages

TEXT = text(SMALL, 6)
CPU = torch.device("cpu")


def test_slots_follow_the_pages() -> None:
    store = store_on(None, SMALL, host=8, gpu=4)
    pids = store.put(0, TEXT.chains, TEXT.tokens, random_pages(SMALL, 6))
    pages = LayerPages(store, 0)
    pages.pids = pids[:4]
    slots = PageSlots(pages, store.host, CPU)
    table = slots.table()
    assert table is not None
    assert table.dtype == torch.int32
    assert table.tolist() == store._table.host_slot[pids[:4]].tolist()
    assert slots.table() is table
    pages.pids = pids[[5, 0]]
    other = slots.table()
    assert other is not None
    assert other.tolist() == store._table.host_slot[pids[[5, 0]]].tolist()
    assert store.gpu is not None
    assert PageSlots(pages, store.gpu, CPU).table() is None
    store.close()


def test_a_page_that_left_is_looked_for_again() -> None:
    store = store_on(None, SMALL, host=8, gpu=4)
    pids = store.put(0, TEXT.chains, TEXT.tokens, random_pages(SMALL, 6))
    assert store.gpu is not None
    out = torch.empty(2 * SMALL.num_heads, SMALL.page_size * SMALL.head_dim)
    heads, sides = np.arange(SMALL.num_heads * 2), SMALL.num_heads * 2
    store.gather(pids[:1], np.zeros(sides, dtype=np.int64), heads, sides, out)  # moves it up
    pages = LayerPages(store, 0)
    pages.pids = pids[:1]
    slots = PageSlots(pages, store.gpu, CPU)
    assert slots.table() is not None
    with store.still():
        store._residency.evict(store.gpu, store._table.gpu_slot[pids[:1]])
    assert slots.table() is None
    store.gather(pids[:1], np.zeros(sides, dtype=np.int64), heads, sides, out)
    assert slots.table() is not None, "what was not there is looked for each time"
    store.close()
