"""A tier in memory: a fixed pool of page slots in one tensor.

Invariants  (1) free + filling + resident slots == num_slots; slots and reserve stay under the cap
            (2) a slot that is filling, leased or pinned is never handed out again
            (3) a resident slot belongs to exactly one page id
States      FREE -> FILLING by `take`, FILLING -> RESIDENT by `settle`,
            FILLING | RESIDENT -> FREE by `free`. `FILLING` slots hold an unsealed page.
Threads     the owner holds the store's lock around every call.

On a GPU the arena lives in device memory; on the host it is pinned when CUDA is present. On a
machine without one, a capped arena in ordinary memory plays the role of the GPU tier.
"""

from __future__ import annotations

import numpy as np
import torch

FREE, FILLING, RESIDENT = 0, 1, 2
NO_PAGE = -1


class Arena:
    """As many slots as `cap_bytes` holds beside `reserved_bytes`, which the owner uses otherwise.

    Memory is touched only as slots are used.
    """

    def __init__(
        self,
        name: str,
        cap_bytes: int,
        page_bytes: int,
        device: torch.device,
        *,
        pin: bool = False,
        reserved_bytes: int = 0,
    ) -> None:
        self.name = name
        self.cap_bytes = cap_bytes
        self.page_bytes = page_bytes
        self.reserved_bytes = reserved_bytes
        self.num_slots = (cap_bytes - reserved_bytes) // page_bytes
        shape = (self.num_slots, page_bytes)
        self.data = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pin)
        self.state = np.zeros(self.num_slots, dtype=np.uint8)
        self.page = np.full(self.num_slots, NO_PAGE, dtype=np.int64)
        self.layer = np.zeros(self.num_slots, dtype=np.int32)
        self.leases = np.zeros(self.num_slots, dtype=np.int32)
        self.last_use = np.zeros(self.num_slots, dtype=np.int64)
        self._freed: list[int] = []
        self._untouched = 0

    @property
    def num_free(self) -> int:
        return len(self._freed) + self.num_slots - self._untouched

    @property
    def used_bytes(self) -> int:
        """Slots in use, and what is reserved beside them."""
        return (self.num_slots - self.num_free) * self.page_bytes + self.reserved_bytes

    @property
    def num_pages(self) -> int:
        return int(np.count_nonzero(self.state == RESIDENT))

    def take(self, count: int, layer: int) -> np.ndarray:
        """Reserve up to `count` free slots (FREE -> FILLING); returns those it got."""
        count = min(count, self.num_free)
        reused = [self._freed.pop() for _ in range(min(count, len(self._freed)))]
        fresh = count - len(reused)
        slots = np.array([*reused, *range(self._untouched, self._untouched + fresh)], dtype=np.int64)
        self._untouched += fresh
        self.state[slots] = FILLING
        self.layer[slots] = layer
        return slots

    def settle(self, slots: np.ndarray, pages: np.ndarray, now: int) -> None:
        """FILLING -> RESIDENT: `slots` now hold `pages`."""
        self.state[slots] = RESIDENT
        self.page[slots] = pages
        self.last_use[slots] = now

    def free(self, slots: np.ndarray) -> None:
        """Return slots to the pool. The caller has removed every reference to them."""
        assert not self.leases[slots].any(), f"{self.name}: freeing a leased slot"
        self.state[slots] = FREE
        self.page[slots] = NO_PAGE
        self._freed.extend(slots.tolist())

    def victims(self, count: int, evictable: np.ndarray, layer: int, num_layers: int, *, force: bool) -> np.ndarray:
        """Up to `count` resident, unleased slots to evict to make room for `layer`.

        Layers are read one after the other, step after step: plain least-recently-used order would
        always evict the layer that is read next. So each layer has an even share. What others hold
        beyond theirs goes first, oldest first; then `layer` gives its own oldest; the rest only with
        `force`, when the room is needed whatever it costs.

        Args:
            evictable: bool `[num_slots]`, what the owner allows to go.
        """
        resident = self.state == RESIDENT
        candidates = np.flatnonzero(resident & (self.leases == 0) & evictable)
        layers = self.layer[candidates]
        excess = np.bincount(self.layer[resident], minlength=int(self.layer.max(initial=0)) + 1)
        excess -= self.num_slots // max(num_layers, 1)
        by_age = np.lexsort((self.last_use[candidates], layers))
        starts = np.searchsorted(layers[by_age], layers[by_age])
        age = np.empty(len(candidates), dtype=np.int64)
        age[by_age] = np.arange(len(candidates)) - starts
        rank = np.where(age < excess[layers], 0, np.where(layers == layer, 1, 2))
        order = np.lexsort((self.last_use[candidates], rank))
        if not force:
            order = order[rank[order] < 2]
        return candidates[order[:count]]

    def rows(self, parts: int) -> torch.Tensor:
        """The pool as `[num_slots * parts, page_bytes // parts]` bytes: row `slot * parts + part`."""
        return self.data.view(self.num_slots * parts, self.page_bytes // parts)

    def check_integrity(self) -> None:
        """Re-add the slots; raises AssertionError with the numbers that disagree."""
        free = int(np.count_nonzero(self.state == FREE))
        assert free == self.num_free, f"{self.name}: {free} free by state, {self.num_free} by list"
        total = self.data.nbytes + self.reserved_bytes
        assert total <= self.cap_bytes, f"{self.name}: {total} bytes > cap {self.cap_bytes}"
        resident = self.page[self.state == RESIDENT]
        assert len(np.unique(resident)) == len(resident), f"{self.name}: a page holds two slots"
        assert (resident >= 0).all(), f"{self.name}: a resident slot without a page"
        assert (self.page[self.state != RESIDENT] == NO_PAGE).all(), f"{self.name}: page in a free slot"
