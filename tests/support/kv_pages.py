"""Pages to put in a store: tokens, chain hashes and random bytes, all from fixed seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stratakv.storage import ROOT, Arena, DiskTier, PageLayout, TieredStore, next_chain
from stratakv.storage.disk.lmdb_file import PAGES

FINGERPRINT = bytes(range(16))
SMALL = PageLayout(num_heads=2, page_size=4, head_dim=8, dtype="float32")
"""512 bytes a page: 4 parts of one head's keys or values, 16 parts of one token in them."""
LARGE = PageLayout(num_heads=2, page_size=16, head_dim=64, dtype="float32")
"""16 KiB a page: a few dozen fill the smallest disk tier."""


@dataclass(frozen=True)
class Text:
    """Tokens cut into pages: `chains[i]` names page i, `tokens` is uint32 `[n, L]`."""

    chains: list[bytes]
    tokens: np.ndarray


def text(layout: PageLayout, num_pages: int, *, seed: int = 0) -> Text:
    tokens = np.random.default_rng(seed).integers(0, 50_000, (num_pages, layout.page_size)).astype(np.uint32)
    chains, chain = [], ROOT
    for page in tokens:
        chain = next_chain(chain, page)
        chains.append(chain)
    return Text(chains, tokens)


def random_pages(layout: PageLayout, count: int, *, seed: int = 0) -> Tensor:
    """uint8 `[count, page_bytes]`."""
    pages = np.random.default_rng(seed).integers(0, 256, (count, layout.page_bytes), dtype=np.uint8)
    return torch.from_numpy(pages)


def arena(name: str, layout: PageLayout, num_slots: int) -> Arena:
    return Arena(name, num_slots * layout.page_bytes, layout.page_bytes, torch.device("cpu"))


def disk_tier(folder: Path, *, cap_bytes: int = 64 << 20, fingerprint: bytes = FINGERPRINT) -> DiskTier:
    return DiskTier(folder, cap_bytes, fingerprint, {"model": "test"})


def store_on(disk: DiskTier | None, layout: PageLayout = SMALL, *, host: int, gpu: int | None = None) -> TieredStore:
    """A store of one layer with `host` (and `gpu`) slots; pages are stored raw."""
    pool = arena("gpu", layout, gpu) if gpu else None
    return TieredStore(layout, 1, host=arena("host", layout, host), gpu=pool, disk=disk, codec="raw")


def read_back(store: TieredStore, pids: np.ndarray) -> Tensor:
    """Whole pages as uint8 `[n, page_bytes]`."""
    out = torch.empty(len(pids), store.layout.page_bytes, dtype=torch.uint8)
    store.gather(pids, np.arange(len(pids)), np.zeros(len(pids), dtype=np.int64), 1, out)
    return out


def delete_pages(disk: DiskTier, keys: list[bytes]) -> None:
    """Take records out of a store behind its back, except those of a later version."""
    disk._records.delete(PAGES, keys)


def lose_pages(store: TieredStore, pids: list[int] | np.ndarray) -> None:
    """The same with the records of pages that have ids."""
    assert store.disk is not None
    delete_pages(store.disk, [store._table.keys[pid] for pid in pids])
