"""The choice of how many threads take a compiled decode step: no more than there are processors that no other process
wants. It is made several times a second.

The rows of a step's table end with their slowest thread. Beside another busy process one of our threads would have to
share its processor, and the others wait for it: on two processors a step took four times as long. With one thread fewer
it takes a quarter longer than on an idle machine, and the other process has its processor to itself.

Compiled steps give the same bits with any number of threads, since their sums are cut by tokens and rows. What PyTorch
computes does not: its libraries cut sums by threads, differently on each kind of processor. So prefill, what indexes
learn, and steps that are not compiled are computed with all threads, always (docs/decisions/0024).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import floor

import psutil
import torch
from threadpoolctl import LibController, ThreadpoolController

from .threads import num_threads, processors, user_chose_count

WINDOW_S = 0.2
"""The least seconds between two looks. Processor times come in hundredths of a second."""
STALE_S = 1.0
"""A window of more seconds than this says little about now: this process was not computing."""
FULL = 0.9
"""The share of the processors' time in use from which on somebody has to wait."""


class SpareCores:
    """Counts the processors that no other process wants.

    The count changes when others want more than half of another processor, or less than a third of one that was given
    up. In between it stays as it is.
    """

    def __init__(
        self,
        cores: int,
        used: Callable[[], tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            cores: number of processors there are.
            used: seconds of processor time on them since any fixed moment: the other processes' and this one's.
        """
        self._cores, self._used, self._clock = cores, used or used_times, clock
        self._given_up = 0
        self._since, self._had = self._clock(), self._used()

    def count(self, threads: int) -> int:
        """The number of processors that are spare, from 0 to all. Cheap to ask; it looks again when `WINDOW_S` seconds
        have passed.

        Args:
            threads: number of our threads that have been computing since it last looked.
        """
        now = self._clock()
        passed = now - self._since
        if passed >= WINDOW_S:
            had = self._used()
            if passed <= STALE_S:
                others, ours = ((new - old) / passed for new, old in zip(had, self._had, strict=True))
                wanted = self._wanted(others, ours, threads)
                self._given_up = min(max(self._given_up, floor(wanted + 1 / 2)), floor(wanted + 2 / 3))
            self._since, self._had = now, had
        return max(0, self._cores - self._given_up)

    def _wanted(self, others: float, ours: float, threads: int) -> float:
        """The number of processors that others would use if they could, from those that they and our `threads` do
        use."""
        if others + ours < FULL * self._cores:
            return others
        # Nothing is free, and whoever wants a processor has an equal share: their number follows from ours.
        return max(others, min(self._cores, threads * others / max(ours, 0.01)))


class FittingThreads:
    """Says how many threads are to take a step: as many as there are spare cores, unless the user chose the number."""

    def __init__(self, spare: SpareCores | None) -> None:
        """`spare` decides the number of threads; None: it never changes."""
        self._spare = spare
        self._count = torch.get_num_threads()

    @classmethod
    def on(cls, device: torch.device) -> FittingThreads:
        """Threads that fit for computing on `device`."""
        follows = device.type == "cpu" and not user_chose_count() and torch.get_num_threads() == num_threads()
        return cls(SpareCores(len(processors())) if follows and num_threads() > 1 else None)

    @contextmanager
    def lent(self) -> Iterator[int]:
        """Inside the block parallel loops of the calling thread run alone, so that OpenMP's threads sleep while others
        compute. Yields how many of those there are to be."""
        most = torch.get_num_threads()
        self._count = most if self._spare is None else min(most, self._spare.count(self._count) or 1)
        if most == 1:
            yield 1
            return
        with _alone():
            yield self._count


@contextmanager
def _alone() -> Iterator[None]:
    """Let parallel loops of the calling thread run with no other thread inside the block."""
    before = [library.num_threads for library in _openmp()]
    for library in _openmp():
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in zip(_openmp(), before, strict=True):
            library.set_num_threads(threads)


@cache
def _openmp() -> list[LibController]:
    """This process's OpenMP libraries. They are asked themselves: `limit` would ask each for all that it can tell."""
    controllers: list[LibController] = ThreadpoolController().select(user_api="openmp").lib_controllers
    return controllers


def used_times() -> tuple[float, float]:
    """Seconds of processor time that other processes and this one have had on the processors it may run on."""
    each = psutil.cpu_times(percpu=True)
    times = [each[number] for number in processors() if number < len(each)]
    idle = ("idle", "iowait", "steal", "guest", "guest_nice")  # a guest's time is counted in user's as well
    total = sum(sum(value for name, value in one._asdict().items() if name not in idle) for one in times)
    own = time.process_time()
    return total - own, own
