"""The page table: the name of each page, and columns by page id."""

from __future__ import annotations

import numpy as np

from ..page import page_key

NO_SLOT = -1
_COLUMNS = ("host_slot", "gpu_slot", "stored", "kept_out", "ahead", "cold", "refs", "layer", "tokens")


class PageTable:
    """Columns by page id, grown by doubling; a row means nothing before `add` and after `remove`.

    `host_slot`, `gpu_slot`: where the page lies in memory, or NO_SLOT. `stored`: its record on disk is committed.
    `kept_out`: it cannot be, since a later version's record has its key. `ahead`: it came up before anybody asked, and
    nobody has read it since. `cold`: others are worth more room. `refs`: sequences and open tickets that hold it.
    `layer`, `tokens` uint32 `[L]`: what it is of. `keys` by id and `pids` by key: its name. Ids of removed pages are
    given out again.
    """

    def __init__(self, page_size: int) -> None:
        self.host_slot = np.full(1024, NO_SLOT, dtype=np.int64)
        self.gpu_slot = np.full(1024, NO_SLOT, dtype=np.int64)
        self.stored = np.zeros(1024, dtype=bool)
        self.kept_out = np.zeros(1024, dtype=bool)
        self.ahead = np.zeros(1024, dtype=bool)
        self.cold = np.zeros(1024, dtype=bool)
        self.refs = np.zeros(1024, dtype=np.int32)
        self.layer = np.zeros(1024, dtype=np.int32)
        self.tokens = np.zeros((1024, page_size), dtype=np.uint32)
        self.keys: list[bytes] = []
        self.pids: dict[bytes, int] = {}
        self._unused: list[int] = []

    def share(self, key: bytes, tokens: np.ndarray) -> int | None:
        """The id of the page of that name, with one more reference; None if there is none, or it has other tokens."""
        pid = self.pids.get(key)
        if pid is None or not np.array_equal(self.tokens[pid], tokens):
            return None
        self.refs[pid] += 1
        return pid

    def add(self, layer: int, chain: bytes, tokens: np.ndarray) -> int:
        """The id of a new page, which is nowhere yet and has one reference."""
        key = page_key(layer, chain)
        if self._unused:
            pid = self._unused.pop()
            self.keys[pid] = key
        else:
            pid = len(self.keys)
            self.keys.append(key)
        while pid >= len(self.refs):
            for name in _COLUMNS:
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self.host_slot[pid] = self.gpu_slot[pid] = NO_SLOT
        self.stored[pid] = self.kept_out[pid] = self.ahead[pid] = self.cold[pid] = False
        self.refs[pid] = 1
        self.layer[pid] = layer
        self.tokens[pid] = tokens
        self.pids[key] = pid
        return pid

    def remove(self, pid: int) -> None:
        """Recycle the id. Under one name there may be a newer page; that keeps it."""
        if self.pids.get(self.keys[pid]) == pid:
            del self.pids[self.keys[pid]]
        self._unused.append(pid)

    def is_resident(self, pids: np.ndarray) -> np.ndarray:
        """True for each page that is in memory, bool `[p]`."""
        resident: np.ndarray = (self.host_slot[pids] >= 0) | (self.gpu_slot[pids] >= 0)
        return resident

    def live(self) -> np.ndarray:
        """The page ids in use, ascending."""
        return np.setdiff1d(np.arange(len(self.keys)), self._unused)
