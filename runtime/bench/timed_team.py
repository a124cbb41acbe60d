"""A team that notes how long each operation of a step takes, and what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...kernels.compiled import record as r
from ...kernels.compiled.team import Team
from ...kernels.compiled.work import read_ticks
from ...storage.transfer import clock
from .breakdown import OPERATIONS, StepParts, read_bytes


class TimedTeam:
    """Works through tables by another team's threads.

    Within a step it only copies tables: their bytes are counted when the step is over.

    Args:
        waited: seconds that steps have waited for pages so far.
    """

    def __init__(self, team: Team, waited: Callable[[], float]) -> None:
        self._team, self._waited = team, waited
        self._steps: list[StepParts] = []
        self._began = _moment()
        self.begin()

    def begin(self) -> None:
        """A step begins; what was noted since the last one's end is forgotten."""
        self._tables: list[np.ndarray] = []
        self._ticks = np.zeros(len(OPERATIONS), dtype=np.int64)
        self._between_s, self._waited_before = 0.0, self._waited()
        self._first = 0.0
        self._ended: float | None = None

    def run(self, table: np.ndarray, threads: int | None = None) -> None:
        """As `Team.run`."""
        now = clock.now()
        if self._ended is None:
            self._first = now
        else:
            self._between_s += now - self._ended
        self._tables.append(table.copy())
        self._team.run(table, threads, self._ticks)
        self._ended = clock.now()

    def end(self, began: float, step_s: float) -> None:
        """The step is over, which began then, by the clock, and took so many seconds; the next begins."""
        prepare_s = self._first - began
        num_bytes = np.zeros(len(OPERATIONS))
        for row in np.concatenate(self._tables):
            num_bytes[row[r.MARK]] += read_bytes(row)
        waits = self._waited() - self._waited_before
        self._steps.append(StepParts(step_s, self._ticks, num_bytes, prepare_s, self._between_s, waits))
        self.begin()

    def take(self) -> list[StepParts]:
        """The steps that have ended since the last call.

        Ticks are of a length that only the processor knows: they are measured by the clock over all that time.
        """
        (from_s, from_ticks), (to_s, to_ticks) = self._began, _moment()
        each = (to_s - from_s) / (to_ticks - from_ticks)
        found = [replace(step, operations_s=step.operations_s * each) for step in self._steps]
        self._steps, self._began = [], (to_s, to_ticks)
        return found


def _moment() -> tuple[float, int]:
    """Now, in seconds and in ticks: the closest of a few tries, since a thread may lose its core between the two."""
    ticks, tries = np.zeros(1, dtype=np.int64), []
    for _ in range(5):
        before = clock.now()
        read_ticks(ticks.ctypes.data, 0)
        tries.append((clock.now() - before, before, int(ticks[0])))
    apart, before, found = min(tries)
    return before + apart / 2, found
