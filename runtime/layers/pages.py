"""The pages of one layer of one sequence: the sealed ones by page id, and the open one.

    position  0 ............ sealed ............ | tail
              pages in the store, any tier         the open page, in the compute tier

A page is laid out `[G, S, L, D]`.

Shapes  G KV heads, S sides (keys and values, or keys that contain the values), L page size, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...storage import OpenPage, PageLayout, TieredStore
from .standing import Run

PUT_PAGES = 64
"""Pages handed to the store at a time: bounds the copy that lays them out."""
_NONE = np.empty(0, dtype=np.int64)


def keys_values(kv: Tensor, layout: PageLayout) -> tuple[Tensor, Tensor]:
    """Keys `[.., D]` and values `[.., V]` of `kv` `[S, ..]`, views."""
    return kv[0], kv[1] if layout.value_dim is None else kv[0, ..., -layout.value_dim :]


def fill(kv: Tensor, k: Tensor, v: Tensor) -> None:
    """Write keys, and values where they stand beside them, into `kv` `[S, ..]`."""
    for side, numbers in zip(kv, (k, v), strict=False):
        side[:] = numbers


def rows_of_units(
    slots: np.ndarray, at: np.ndarray, *, units: int, groups: int, sides: int, last: int
) -> np.ndarray:  # fmt: skip
    """Where units lie in a pool of pages `[slots, G, S, U, ..]`: the rows, int64 `[last, G, n]`, of their last sides.

    Args:
        slots, at: of each unit, int64 `[n]`: the slot of its page, and which of the U units of that it is.
    """
    side, head = np.arange(sides - last, sides)[:, None, None], np.arange(groups)[:, None]
    rows: np.ndarray = ((slots * groups + head) * sides + side) * units + at
    return rows


class LayerPages:
    """Each sealed page is held by one reference in the store."""

    def __init__(self, store: TieredStore, layer: int) -> None:
        self.store, self.layer, self.layout = store, layer, store.layout
        self._pids = _NONE
        self.sealed = 0
        """Tokens in sealed pages."""
        self.tail_len = 0
        """Tokens in the open page."""
        self._open: OpenPage | None = None
        self._dtype: torch.dtype = getattr(torch, store.layout.dtype)
        self._kv = torch.empty(0, dtype=self._dtype)
        self._run: Run | None = None
        """The open page as a run of tokens; None: nobody has asked."""

    @property
    def pids(self) -> np.ndarray:
        """Page ids of the sealed pages, int64, in order; another array whenever they are others."""
        return self._pids

    @pids.setter
    def pids(self, pids: np.ndarray) -> None:
        self._pids, self.sealed = pids, len(pids) * self.layout.page_size

    @property
    def is_full(self) -> bool:
        """Whether the open page is, so that it can be sealed."""
        return self.tail_len == self.layout.page_size

    # The open page

    @property
    def tail(self) -> tuple[Tensor, Tensor]:
        """K and V `[G, tail_len, D]` of the open page's tokens, views; there is at least one."""
        return keys_values(self.open_kv[:, :, : self.tail_len], self.layout)

    def add(self, k: Tensor, v: Tensor) -> None:
        """The next token; k and v `[G, D]`. Raises CapacityError if that needs a page and there is no room for it."""
        fill(self._opened()[:, :, self.tail_len], k, v)
        self.tail_len += 1

    def begin_step(self) -> tuple[Run, int]:
        """Count the next token in, whose k and v are written by address: as `LayerKV.begin_step`. Raises as `add`
        does."""
        if self._open is None or self._run is None:
            self._run = Run(self._opened())
        self.tail_len += 1
        return self.run

    def count_in(self) -> int:
        """Count the next token in, whose k and v are written by the device. Returns the slot of the open page. Raises
        as `add` does."""
        self._opened()
        assert self._open is not None
        self.tail_len += 1
        return self._open.slot

    @property
    def run(self) -> tuple[Run, int]:
        """The open page as a run of tokens, and how many there are, after `begin_step`."""
        assert self._run is not None
        return self._run, self.tail_len

    @property
    def open_kv(self) -> Tensor:
        """The open page `[S, G, L, D]`, a view; there is one."""
        assert self._open is not None
        return self._kv

    def tail_copy(self) -> Tensor:
        """K and V `[S, G, tail_len, D]` of the open page's tokens, a copy."""
        if not self.tail_len:
            return torch.empty((self.layout.sides, self.layout.num_heads, 0, self.layout.head_dim), dtype=self._dtype)
        return self.open_kv[:, :, : self.tail_len].contiguous().clone()

    def set_tail(self, kv: Tensor) -> None:
        """Hold `kv` `[S, G, n, D]`, n < L, in the open page and nothing else. A page that is open stays so: with full
        tiers there might be no room for another one."""
        if kv.shape[2]:
            self._opened()[:, :, : kv.shape[2]] = kv
            self.tail_len = kv.shape[2]
        else:
            self.drop_tail()

    def drop_tail(self) -> None:
        if self._open is not None:
            self.store.discard(self._open)
        self._open, self.tail_len = None, 0

    def _opened(self) -> Tensor:
        if self._open is None:
            self._open = self.store.open_page(self.layer)
            shape = (self.layout.num_heads, self.layout.sides, self.layout.page_size, self.layout.head_dim)
            with torch.inference_mode(False):  # who writes there later need not be in that mode
                self._kv = self._open.bytes.view(self._dtype).view(shape).transpose(0, 1)
            self._run = None
        return self._kv

    # Sealed pages

    def seal(self, chain: bytes, tokens: np.ndarray) -> Tensor:
        """The open page, which is full, goes to the store; returns its keys `[G, L, D]`, a copy. Raises CapacityError;
        nothing has changed then."""
        assert self._open is not None
        assert self.is_full
        keys = self._kv[0].clone()
        pid = self.store.seal(self._open, chain, tokens)
        self._open, self.tail_len = None, 0
        self.pids = np.append(self.pids, pid)
        return keys

    def put(self, chains: list[bytes], tokens: np.ndarray, kv: Tensor) -> None:
        """Whole pages `kv` `[S, G, pages * L, D]` go to the store. Raises CapacityError; some may be there then."""
        size = self.layout.page_size
        for first in range(0, len(chains), PUT_PAGES):
            some = slice(first, first + PUT_PAGES)
            part = kv[:, :, first * size : (first + PUT_PAGES) * size]
            pages = part.reshape(len(part), part.shape[1], -1, size, part.shape[3]).permute(2, 1, 0, 3, 4).flatten(1)
            pids = self.store.put(self.layer, chains[some], tokens[some], pages.view(torch.uint8))
            self.pids = np.concatenate([self.pids, pids])

    def adopt(self, chains: Sequence[bytes], tokens: np.ndarray) -> None:
        """Pages that the store has come next; they take the place of the open one."""
        self.drop_tail()
        self.pids = np.concatenate([self.pids, self.store.adopt(self.layer, chains, tokens)])

    def rank(self, cold: np.ndarray) -> None:
        """Those of the sealed pages that are `cold`, bool `[pages]`, give way before others in every tier."""
        self.store.rank(self.pids, cold)

    def share(self, other: LayerPages) -> None:
        """Hold the sealed pages of `other`, too. There are none here yet."""
        self.store.retain(other.pids)
        self.pids = other.pids.copy()

    def cut(self, num_pages: int) -> None:
        """Give up all sealed pages but the first `num_pages`."""
        self.store.release(self.pids[num_pages:])
        self.pids = self.pids[:num_pages]

    def close(self) -> None:
        """Give everything up."""
        self.drop_tail()
        self.cut(0)
