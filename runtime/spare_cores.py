"""How many threads compute: no more than there are processors that no other process is using, looked at several times a
second.

A decode step is some hundreds of small parallel loops, and a loop ends with its slowest thread. Beside another busy
process one of our threads has to share its processor, and the others spin until it is done, which takes time from it
too: on two processors a step takes four to five times as long. With one thread fewer it takes one and a half times as
long, and the other process has its processor to itself. Letting threads sleep instead of spin is worse on an idle
machine and on a busy one (docs/decisions/0024).

Layers give the same bits with any number of threads (tests/runtime/test_spare_cores.py). What indexes learn need not,
so that is always computed with all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import floor

import psutil
import torch
from threadpoolctl import ThreadpoolController

from .threads import num_threads, processors, user_chose_count

WINDOW_S = 0.2
"""How often to look, at most. Processor times come in hundredths of a second."""
STALE_S = 1.0
"""A window that has become longer than this says little about now: this process was not computing."""


class SpareCores:
    """Counts the processors that no other process is using.

    The count changes when others use more than half of another processor, or less than a third of one that was given
    up. In between it stays as it is.
    """

    def __init__(
        self,
        cores: int,
        used: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            cores: how many there are.
            used: seconds of processor time that other processes have had on them, since any fixed moment.
        """
        self._cores, self._used, self._clock = cores, used or used_by_others, clock
        self._given_up = 0
        self._since, self._had = self._clock(), self._used()

    def count(self) -> int:
        """0 to `cores`. Cheap to ask; it looks again when `WINDOW_S` have passed."""
        now = self._clock()
        passed = now - self._since
        if passed >= WINDOW_S:
            had = self._used()
            if passed <= STALE_S:
                others = (had - self._had) / passed
                self._given_up = min(max(self._given_up, floor(others + 1 / 2)), floor(others + 2 / 3))
            self._since, self._had = now, had
        return max(0, self._cores - self._given_up)


class FittingThreads:
    """Runs blocks with as many of OpenMP's threads as there are spare cores, unless the user chose their number."""

    def __init__(self, spare: SpareCores | None) -> None:
        """Without `spare` nothing is changed."""
        self._spare = spare

    @classmethod
    def on(cls, device: torch.device) -> FittingThreads:
        """For computing on `device`."""
        follows = device.type == "cpu" and not user_chose_count() and torch.get_num_threads() == num_threads()
        return cls(SpareCores(len(processors())) if follows and num_threads() > 1 else None)

    @contextmanager
    def fitted(self) -> Iterator[None]:
        """Of the calling thread only; others, and what comes after the block, have the threads they had."""
        most = torch.get_num_threads()
        count = most if self._spare is None else max(1, min(most, self._spare.count()))
        if count == most:
            yield
            return
        with _openmp().limit(limits=count):
            yield


@cache
def _openmp() -> ThreadpoolController:
    """The OpenMP libraries of this process."""
    return ThreadpoolController().select(user_api="openmp")


def used_by_others() -> float:
    """Seconds of processor time that other processes have had on the processors this one may run on."""
    each = psutil.cpu_times(percpu=True)
    times = [each[number] for number in processors() if number < len(each)]
    idle = ("idle", "iowait", "steal", "guest", "guest_nice")  # a guest's time is counted in user's as well
    total = sum(sum(value for name, value in one._asdict().items() if name not in idle) for one in times)
    return total - time.process_time()
