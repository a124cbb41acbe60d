"""Lanes that do what a stream may: nothing until it must, and nothing out of order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from stratakv.storage.memory.in_flight import InFlight
from stratakv.storage.transfer.lane import Lane, Moment


class LateLane(Lane):
    """Copies are done at the last moment: when their arrival is waited for, or whoever changes their source waits."""

    def __init__(self) -> None:
        self._told: list[tuple[Tensor, Tensor]] = []
        self._done = 0

    def copy(self, out: Tensor, source: Tensor) -> None:
        self._told.append((out, source))

    def arrival(self) -> Moment:
        return _Late(self._do, len(self._told))

    def note(self, reads: InFlight) -> None:
        event: Any = _Late(self._do, len(self._told))
        reads._last[id(self)] = event

    def _do(self, count: int) -> None:
        for out, source in self._told[self._done : count]:
            out.copy_(source)
        self._done = max(self._done, count)


class _Late:
    def __init__(self, do: Callable[[int], None], count: int) -> None:
        self._do, self._count = do, count

    def wait(self) -> None:
        self._do(self._count)

    def synchronize(self) -> None:
        self._do(self._count)


class OrderedLane(Lane):
    """Copies are done at once, if they could not begin before whatever was `reading` their place has ended."""

    def __init__(self) -> None:
        self._clock = self._floor = 0
        self._read: dict[tuple[int, int], int] = {}
        self.copies = 0

    def reading(self, pages: Tensor) -> None:
        """The device is told to read there."""
        self._clock += 1
        self._read[pages.data_ptr(), pages.data_ptr() + pages.nbytes] = self._clock

    def now(self) -> Moment:
        return _At(self._clock)

    def after(self, moment: Moment) -> None:
        if isinstance(moment, _At):
            self._floor = max(self._floor, moment.clock)

    def copy(self, out: Tensor, source: Tensor) -> None:
        last = max((at for (begin, end), at in self._read.items() if begin <= out.data_ptr() < end), default=0)
        assert self._floor >= last, "it would land where somebody reads"
        self.copies += 1
        out.copy_(source)


class _At:
    def __init__(self, clock: int) -> None:
        self.clock = clock

    def wait(self) -> None:
        """It has been."""
