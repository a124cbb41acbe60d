"""What the store knows of each page, as columns by page id."""

from __future__ import annotations

import numpy as np

NO_SLOT = -1


class PageTable:
    """Columns by page id, grown by doubling; a row means nothing before `reset`.

    `host_slot`, `gpu_slot`: where the page lies in memory, or NO_SLOT. `stored`: its record on disk is
    committed. `refs`: sequences that hold it. `layer`, `tokens` uint32 `[L]`: what it is of.
    """

    def __init__(self, page_size: int) -> None:
        self.host_slot = np.full(1024, NO_SLOT, dtype=np.int64)
        self.gpu_slot = np.full(1024, NO_SLOT, dtype=np.int64)
        self.stored = np.zeros(1024, dtype=bool)
        self.refs = np.zeros(1024, dtype=np.int32)
        self.layer = np.zeros(1024, dtype=np.int32)
        self.tokens = np.zeros((1024, page_size), dtype=np.uint32)

    def reset(self, pid: int, layer: int, tokens: np.ndarray) -> None:
        """A new page takes the row: nowhere yet, one reference."""
        while pid >= len(self.refs):
            for name, column in vars(self).items():
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self.host_slot[pid] = self.gpu_slot[pid] = NO_SLOT
        self.stored[pid] = False
        self.refs[pid] = 1
        self.layer[pid] = layer
        self.tokens[pid] = tokens
