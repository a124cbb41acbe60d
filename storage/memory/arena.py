"""A tier in memory: a fixed pool of page slots in one tensor.

A slot's life

             take              settle              evict               free
     FREE ---------> FILLING ---------> RESIDENT ---------> EVICTING ---------> FREE
                        |                | ^
                        |          lease v | unlease
                        |              LEASED
                        +--------------------- free ----------------------------> FREE

     state      its bytes                its page id        who may touch it
     FREE       garbage                  NO_PAGE            nobody
     FILLING    being written            NO_PAGE            the one who took it: an open page or a load
     RESIDENT   the page's, whole        the page           the store; may be chosen as a victim
     LEASED     the page's, whole        the page           readers; stays where it is
     EVICTING   not to be read any more  still the page     the store, while it removes what refers to the slot

LEASED is RESIDENT with a count of leases above zero: several readers may hold one slot.

Invariants  (1) every slot is in exactly one state, and the states of all slots add up to `num_slots`
            (2) slots that are not FREE and the reserve stay within `cap_bytes`: asserted at every `take`
            (3) a slot that is FILLING, LEASED or EVICTING is neither handed out nor chosen as a victim
            (4) a page has at most one slot that is RESIDENT here
            (5) a slot changes its state only in `_enter`, which refuses any arrow that is not drawn above
Threads     the owner holds the store's lock around every call. The bytes of a FILLING slot may be written without.

On a GPU the arena lives in device memory; on the host it is pinned (see `pinning`) when CUDA is present. On a
machine without one, a capped arena in ordinary memory plays the role of the GPU tier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .free_slots import FreeSlots
from .in_flight import InFlight
from .pinning import CudaPins, Pinner, Pins
from .unforked import unforked

FREE, FILLING, RESIDENT, EVICTING = range(4)
NO_PAGE = -1
_NAMES = ("FREE", "FILLING", "RESIDENT", "EVICTING")
_BEFORE = {FREE: (FILLING, EVICTING), FILLING: (FREE,), RESIDENT: (FILLING,), EVICTING: (RESIDENT,)}
"""The states from which each state may be entered."""
_LEGAL = np.array([[before in _BEFORE[state] for before in range(4)] for state in range(4)])
"""The same as a table of bool: `[state, state before]`."""


class Arena:
    """A pool of as many slots as fit `cap_bytes` beside `reserved_bytes`, which the owner uses for other things.

    Memory is touched only as slots are used, or pinned. A forked child has none of its bytes.

    Args:
        pin: pin host memory in the background; `close` must then be called before the arena goes.
        pins: the way to pin it; None: CUDA's.
        regions: into which layers' slots are kept apart; 1: they are not (`free_slots`).
    """

    def __init__(
        self,
        name: str,
        cap_bytes: int,
        page_bytes: int,
        device: torch.device,
        *,
        pin: bool = False,
        pins: Pins | None = None,
        reserved_bytes: int = 0,
        regions: int = 1,
    ) -> None:
        self.name = name
        self.cap_bytes = cap_bytes
        self.page_bytes = page_bytes
        self.reserved_bytes = reserved_bytes
        self.num_slots = (cap_bytes - reserved_bytes) // page_bytes
        is_host = device.type == "cpu"
        shape = (self.num_slots, page_bytes)
        self.data = unforked(*shape) if is_host else torch.empty(shape, dtype=torch.uint8, device=device)
        self.pinner = Pinner(self.data, pins or CudaPins()) if pin and self.num_slots else None
        self.state = np.zeros(self.num_slots, dtype=np.uint8)
        self.page = np.full(self.num_slots, NO_PAGE, dtype=np.int64)
        self.layer = np.zeros(self.num_slots, dtype=np.int32)
        self.leases = np.zeros(self.num_slots, dtype=np.int32)
        self.last_use = np.zeros(self.num_slots, dtype=np.int64)
        self.in_flight = InFlight()
        """Reads by a device, which an eviction waits for."""
        self.reached: bool | None = None
        """Whether a device can read this memory; None: nobody has asked it."""
        self.departures = 0
        """Evictions so far. A page that stays does not move, so addresses hold until there is one more."""
        self._free = FreeSlots(self.num_slots, regions)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots in use and of `reserved_bytes`."""
        return (self.num_slots - self.num_free) * self.page_bytes + self.reserved_bytes

    @property
    def num_pages(self) -> int:
        return int(np.count_nonzero(self.state == RESIDENT))

    @property
    def num_filling(self) -> int:
        return int(np.count_nonzero(self.state == FILLING))

    @property
    def is_pinned(self) -> bool:
        """Whether all of it is, so that a device can read it. Pinning ends some time after the start."""
        return self.pinner is not None and self.pinner.pinned_bytes == self.data.nbytes

    # The transitions

    def take(self, count: int, layer: int) -> np.ndarray:
        """FREE -> FILLING: reserve up to `count` slots; returns those it got."""
        slots = self._free.take(count, layer)
        self._enter(FILLING, slots)
        self.layer[slots] = layer
        assert not len(slots) or self.used_bytes <= self.cap_bytes, (
            f"{self.name}: {count} slots taken, now {self.used_bytes} bytes > cap {self.cap_bytes}"
        )
        return slots

    def settle(self, slots: np.ndarray, pages: np.ndarray, now: int) -> None:
        """FILLING -> RESIDENT: `slots` now hold `pages`."""
        self._enter(RESIDENT, slots)
        self.page[slots] = pages
        self.last_use[slots] = now

    def lease(self, slots: np.ndarray) -> None:
        """RESIDENT -> LEASED, or one more lease on each slot. `slots` are distinct."""
        wrong = slots[self.state[slots] != RESIDENT]
        assert not len(wrong), f"{self.name}: slot {self._named(wrong)} cannot be leased: it holds no page"
        self.leases[slots] += 1

    def unlease(self, slots: np.ndarray) -> None:
        """Give one lease back on each slot; the last one makes LEASED -> RESIDENT."""
        wrong = slots[self.leases[slots] < 1]
        assert not len(wrong), f"{self.name}: slot {self._named(wrong)} has no lease to give back"
        self.leases[slots] -= 1

    @contextmanager
    def leased(self, slots: np.ndarray) -> Iterator[None]:
        self.lease(slots)
        try:
            yield
        finally:
            self.unlease(slots)

    def evict(self, slots: np.ndarray) -> np.ndarray:
        """RESIDENT -> EVICTING: nobody may read them any more. Returns the pages they held."""
        self.in_flight.wait()
        self._enter(EVICTING, slots)
        self.departures += 1
        held: np.ndarray = self.page[slots]
        return held

    def free(self, slots: np.ndarray) -> None:
        """FILLING | EVICTING -> FREE. The caller has removed every reference to them."""
        self._enter(FREE, slots)
        self.page[slots] = NO_PAGE
        self._free.give(slots)

    def _enter(self, state: int, slots: np.ndarray) -> None:
        """The only place where a slot's state changes."""
        before = self.state[slots]
        legal = _LEGAL[state][before]
        assert legal.all(), (
            f"{self.name}: slot {self._named(slots[~legal])} cannot become {_NAMES[state]}: "
            f"that follows only on {' or '.join(_NAMES[i] for i in _BEFORE[state])}"
        )
        leased = slots[self.leases[slots] > 0]
        assert not len(leased), f"{self.name}: slot {self._named(leased)} is leased and cannot become {_NAMES[state]}"
        self.state[slots] = state

    def _named(self, slots: np.ndarray) -> str:
        return ", ".join(f"{slot} ({_NAMES[self.state[slot]]})" for slot in slots[:3].tolist())

    def close(self) -> None:
        """Unpin the memory. Nothing else changes: what is leased may still be given back."""
        self.in_flight.wait()
        if self.pinner is not None:
            self.pinner.close()

    # Views

    def rows(self, parts: int) -> torch.Tensor:
        """The pool as `[num_slots * parts, page_bytes // parts]` bytes: row `slot * parts + part`."""
        return self.data.view(self.num_slots * parts, self.page_bytes // parts)

    def pieces(self, slot: int, count: int) -> Iterator[torch.Tensor]:
        """The bytes of neighbouring slots, in pieces for one copy each: none goes on from one pinned range into the
        next, which CUDA may refuse."""
        start, stop, flat = slot * self.page_bytes, (slot + count) * self.page_bytes, self.data.view(-1)
        every = self.pinner.range_bytes if self.pinner is not None else stop
        while start < stop:
            end = min(stop, (start // every + 1) * every)
            yield flat[start:end]
            start = end

    def check_integrity(self) -> None:
        """Re-add the slots; raises AssertionError with the numbers that disagree."""
        free = int(np.count_nonzero(self.state == FREE))
        assert free == self.num_free, f"{self.name}: {free} free by state, {self.num_free} by list"
        self._free.check_integrity()
        total = self.data.nbytes + self.reserved_bytes
        assert total <= self.cap_bytes or not self.num_slots, f"{self.name}: {total} bytes > cap {self.cap_bytes}"
        assert not (self.state == EVICTING).any(), f"{self.name}: an eviction was begun and not ended"
        resident = self.page[self.state == RESIDENT]
        assert len(np.unique(resident)) == len(resident), f"{self.name}: a page holds two slots"
        assert (resident >= 0).all(), f"{self.name}: a resident slot without a page"
        assert (self.page[self.state != RESIDENT] == NO_PAGE).all(), f"{self.name}: page in a free slot"
        assert (self.leases[self.state != RESIDENT] == 0).all(), f"{self.name}: a lease on a slot without a page"
        assert (self.leases >= 0).all(), f"{self.name}: a lease was given back twice"
