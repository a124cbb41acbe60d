"""The blocks of a layer's past, on their way to the device while the ones before are attended to.

    lane      block 0    block 1              block 2              block 3 ...
    device               unpack 0, attend     unpack 1, attend     unpack 2, attend
    host      tells all of this and waits for none of it, unless pages are on disk only

Blocks land as pages, in buffers of the compute tier. With more than two buffers all but the last two keep what landed
in them first: where another chunk of rows of the same span reads the same past, that need not come again. With enough
of them a past crosses the link once for all rows of a span, however many chunks these are.

Invariants  (1) block i + 1 is told to come before block i is given out
            (2) nothing lands in a buffer before what it held is unpacked: a copy into it begins after that moment
            (3) nothing is unpacked before it has arrived
            (4) a buffer holds the pages that `_held` names or nobody's; what a turn leaves there the next one may not
                use, since page ids are given again
Damage      A block that cannot be told to come ahead is told to come again when its turn comes, and what is damaged is
            recomputed then. That may read other layers through these buffers, which is seen by (4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...storage import CorruptPageError, PageLayout, TieredStore
from ...storage.transfer.lane import Lane, Moment, lane_of
from ..process.turns import Turns

Unpacked = TypeVar("Unpacked")
ROTATING = 2
"""Buffers that blocks take in turns: one is read while the other is filled."""


class PastBlocks:
    """Buffers for blocks of at most so many tokens.

    Args:
        turns: whoever holds the turn may use them.
        count: of the buffers, at least `ROTATING`.
    """

    def __init__(self, layout: PageLayout, tokens: int, count: int, device: torch.device, turns: Turns) -> None:
        assert count >= ROTATING
        dtype: torch.dtype = getattr(torch, layout.dtype)
        shape = (count, tokens // layout.page_size, layout.page_bytes // layout.item_bytes)
        self.buffers = torch.empty(shape, dtype=dtype, device=device)
        self.lane: Lane = lane_of(device)
        self._turns, self._turn = turns, turns.number
        self._held: list[np.ndarray | None] = [None] * count
        """The page ids of what each buffer holds, or will once it has arrived."""
        self._arrivals: list[Moment | None] = [None] * count
        """Of what has been told to come and was not waited for."""
        self._unpacked = [self.lane.now()] * count
        """When each buffer was read last; at first, when its memory was another's."""

    def read(
        self, store: TieredStore, blocks: Sequence[np.ndarray], unpack: Callable[[Tensor], Unpacked],
        recover: Callable[[list[int]], None],
    ) -> Iterator[Unpacked]:  # fmt: skip
        """What `unpack` makes of each block, page ids `[p]` of one layer, in order. It is given the pages
        `[p, page_bytes / itemsize]` on the device; what it returns is good until the next.

        Args:
            recover: recomputes damaged pages.
        """
        self._turns.require()
        for number, pids in enumerate(blocks):
            at = self._place(number)
            self._send(store, at, pids, recover)
            if number + 1 < len(blocks):
                self._send_ahead(store, self._place(number + 1), blocks[number + 1])
            pages = self._arrived(at)[: len(pids)]
            store.sending.keep(pids, pages)
            found = unpack(pages)
            self._unpacked[at] = self.lane.now()
            yield found

    def _place(self, number: int) -> int:
        kept = len(self.buffers) - ROTATING
        return number if number < kept else kept + (number - kept) % ROTATING

    def _send(self, store: TieredStore, at: int, pids: np.ndarray, recover: Callable[[list[int]], None]) -> None:
        try:
            self._told(store, at, pids)
        except CorruptPageError as error:
            recover(error.pages)
            self._told(store, at, pids)

    def _send_ahead(self, store: TieredStore, at: int, pids: np.ndarray) -> None:
        try:
            self._told(store, at, pids)
        except CorruptPageError:
            return  # whoever comes to it will see

    def _told(self, store: TieredStore, at: int, pids: np.ndarray) -> None:
        """Tell the block to come into a buffer, unless it has been told already."""
        if self._turn != self._turns.number:
            self._held, self._turn = [None] * len(self._held), self._turns.number
        held = self._held[at]
        if held is not None and np.array_equal(held, pids):
            return
        self._arrived(at)  # where somebody gave up: what came then may still be coming
        self.lane.after(self._unpacked[at])
        self._held[at] = None
        try:
            store.sending.send(pids, self.buffers[at, : len(pids)], self.lane)
        finally:
            self._arrivals[at] = self.lane.arrival()
        self._held[at] = pids

    def _arrived(self, at: int) -> Tensor:
        """A buffer, once all that was told to come there has."""
        if (arrival := self._arrivals[at]) is not None:
            arrival.wait()
            self._arrivals[at] = None
        return self.buffers[at]
