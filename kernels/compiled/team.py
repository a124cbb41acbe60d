"""A team of threads that work through tables (`record`) together, without Python in between.

The threads are Python's, so that the interpreter knows them, but they stay in compiled code (`work`) and sleep there
when there is nothing to do. A fork has none of them: its first table makes new ones.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np

from .record import MEMORY, WIDTH
from .work import (
    COUNTERS,
    ENDED,
    JOB,
    LINE,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SPINS,
    STATE,
    TABLE,
    THREADS,
    TIMES,
    tell,
    work,
)

_SPINS = 2000
"""Looks before a thread goes to sleep: some tens of microseconds."""


class Team:
    """As many threads as are asked for, the caller's among them. One caller at a time; others wait.

    Args:
        threads: the most that a table is worked through with.
    """

    def __init__(self, threads: int) -> None:
        self.most = threads
        self._lock = threading.Lock()
        self._process = 0
        self._begin()

    def _begin(self) -> None:
        """Threads for this process. Memory that those of an earlier one look at is left alone."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._state = np.zeros(STATE + LINE, dtype=np.int64)[LINE:]
        self._state[SPINS] = _SPINS
        self._counters, self._scratch = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint8)
        self._threads: list[threading.Thread] = []
        atexit.register(self.close)

    @property
    def _address(self) -> int:
        return int(self._state.ctypes.data)

    def run(self, table: np.ndarray, threads: int | None = None, times: np.ndarray | None = None) -> None:
        """Work through a table.

        Args:
            table: int64 `[n, WIDTH]`, contiguous, n > 0.
            threads: at most `most`; None: as many.
            times: int64, by MARK: is added to in ticks.
        """
        assert table.shape[1] == WIDTH
        assert table.dtype == np.int64
        assert table.flags.c_contiguous
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            count = min(self.most, threads or self.most)
            self._make_room(len(table), -(-int(table[:, MEMORY].max()) // 128) * 128)
            self._start(count)
            state = self._state
            state[TABLE], state[ROWS], state[THREADS] = table.ctypes.data, len(table), count
            state[TIMES] = 0 if times is None else times.ctypes.data
            self._counters[:] = 0
            if count > 1:
                tell(self._address, JOB)
            work(self._address, 0)

    def _make_room(self, rows: int, each: int) -> None:
        if len(self._counters) < rows * LINE:
            self._counters = np.empty(rows * LINE, dtype=np.int64)
            self._state[COUNTERS] = self._counters.ctypes.data
        if self._state[SCRATCH_BYTES] < each:
            self._scratch = np.empty(each * self.most + 128, dtype=np.uint8)
            self._state[SCRATCH] = (self._scratch.ctypes.data + 127) // 128 * 128
            self._state[SCRATCH_BYTES] = each

    def _start(self, count: int) -> None:
        while len(self._threads) < count - 1:
            number = len(self._threads) + 1
            thread = threading.Thread(target=work, args=(self._address, number), name=f"compiled-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End the threads."""
        if self._process == os.getpid() and self._threads:
            self._state[ENDED] = 1
            tell(self._address, JOB)
            for thread in self._threads:
                thread.join()
            self._threads = []
            self._state[ENDED] = 0
        atexit.unregister(self.close)
