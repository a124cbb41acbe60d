"""Keys and values of one layer over a store of small pages, and the parts of a layer that work on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from kv_pages import SMALL, disk_tier, store_on, text
from torch import Tensor

from stratakv.runtime.layers.page_reader import PageReader, Recover
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import DiskTier, TieredStore

PAGES, SIZE = 24, SMALL.page_size
TEXT = text(SMALL, PAGES)
KV = torch.randn(2, SMALL.num_heads, PAGES * SIZE, SMALL.head_dim, generator=torch.Generator().manual_seed(0))
"""Keys and values `[2, G, tokens, D]` of the tokens of `TEXT`."""
REPEATS = 3
"""Query heads per KV head."""
QUERIES = torch.randn(
    REPEATS * SMALL.num_heads, PAGES * SIZE, SMALL.head_dim, generator=torch.Generator().manual_seed(1)
)
"""The queries `[H, tokens, D]` of the same tokens."""
SCALE = 0.4


@contextmanager
def opened(disk: DiskTier | None = None, *, host: int = PAGES, gpu: int | None = None) -> Iterator[TieredStore]:
    """A store that is whole at the end."""
    store = store_on(disk, SMALL, host=host, gpu=gpu)
    yield store
    store.check_integrity()
    store.close()


def workspace_of(span_tokens: int = 0) -> Workspace:
    return Workspace(SMALL, span_tokens, torch.device("cpu"))


def put(pages: LayerPages, end: int) -> None:
    """Bring the pages behind those that are there, up to `end` of them."""
    some = slice(len(pages.pids), end)
    pages.put(TEXT.chains[some], TEXT.tokens[some], KV[:, :, some.start * SIZE : end * SIZE])


def filled(store: TieredStore, num_pages: int) -> LayerPages:
    """A layer that has the first pages."""
    pages = LayerPages(store, 0)
    put(pages, num_pages)
    return pages


@contextmanager
def spilled(folder: Path, num_pages: int) -> Iterator[LayerPages]:
    """A layer that has the first pages, which are on disk only."""
    with opened(disk_tier(folder)) as store:
        filled(store, num_pages)
    with opened(disk_tier(folder)) as store:
        pages = LayerPages(store, 0)
        pages.adopt(TEXT.chains[:num_pages], TEXT.tokens[:num_pages])
        yield pages


def no_damage(pids: list[int]) -> None:
    raise AssertionError(f"pages {pids} are damaged")


def reader_of(pages: LayerPages, recover: Recover = no_damage) -> PageReader:
    return PageReader(pages, workspace_of(), recover)


def attended(start: int, end: int) -> Tensor:
    """The exact causal attention `[H, end - start, D]` of these tokens over all before them and themselves, in fp64."""
    keys, values = KV[:, :, :end].double().repeat_interleave(REPEATS, 1)
    scores = QUERIES[:, start:end].double() @ keys.transpose(1, 2) * SCALE
    later = torch.arange(end) > torch.arange(start, end)[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ values


def decode(layer: TieredLayer, start: int, end: int) -> Tensor:
    """The outputs `[H, end - start, D]` of steps with these tokens, which seal pages as they fill."""
    outs = []
    with layer.workspace.turns.taken():
        for at in range(start, end):
            outs.append(layer.step(QUERIES[:, at], *KV[:, :, at], SCALE))
            if layer.pages.is_full:
                layer.seal(TEXT.chains[at // SIZE], TEXT.tokens[at // SIZE])
    return torch.stack(outs, 1)
