"""What every thread of a team does: wait for a table, work through it with the others, wait for the next.

A team's state is some int64 in memory of its own, those that are written often a cache line apart.

Between two operations all threads wait for the last one (`_meet`): a moment awake, since it will not be long, then
asleep, since on a busy machine it may be.
"""

from __future__ import annotations

from typing import Any

from .native import atomic_add, atomic_load, call, call_alone, longs, loop, pause, sleep, ticks, wake
from .operation import operation, preparation
from .record import BARRIER, ITEMS, MARK, OPERATION, PREPARE, WIDTH

LINE = 8
"""int64 in a cache line, or two."""
JOB, ARRIVED, PHASE, SLEEPERS, ENDED = (LINE * i for i in range(5))
"""Tables so far; threads that have come to this meeting; meetings so far; threads asleep; 1: no more tables."""
TABLE, ROWS, COUNTERS, THREADS, SCRATCH, SCRATCH_BYTES, TIMES, SPINS = range(LINE * 5, LINE * 5 + 8)
"""Addresses and sizes of the table, of the count of items taken of each row, of the threads' own memory, and of the
ticks by MARK (0: not wanted); looks before a thread goes to sleep."""
STATE = LINE * 7


@operation
def work(team: int, thread: int, seen: int) -> None:
    """Be one of a team's threads. Thread 0 works through one table, the others wait for all that come after the first
    `seen` ones."""
    state = longs(team, STATE)
    if thread == 0:
        _perform(state, team, 0)
        return
    while True:
        _wait(team, JOB, seen, state[SPINS])
        seen = atomic_load(team + 8 * JOB)
        if atomic_load(team + 8 * ENDED) != 0:
            return
        if thread < state[THREADS]:
            _perform(state, team, thread)


@loop
def _perform(state: Any, team: int, thread: int) -> None:
    table, threads = longs(state[TABLE], (state[ROWS], WIDTH)), state[THREADS]
    scratch = state[SCRATCH] + thread * state[SCRATCH_BYTES]
    started = ticks()
    for i in range(state[ROWS]):
        op, row = table[i], state[TABLE] + 8 * WIDTH * i
        items = op[ITEMS]
        if op[PREPARE] != 0 and items != 0:
            call_alone(op[PREPARE], row, scratch)
        while items != 0:
            item = atomic_add(state[COUNTERS] + 8 * LINE * i, 1)
            if item >= items:
                break
            call(op[OPERATION], row, item, scratch)
        if op[BARRIER] != 0 or i + 1 == state[ROWS]:
            _meet(team, threads, state[SPINS])
            if thread == 0 and state[TIMES] != 0:
                now = ticks()
                longs(state[TIMES], op[MARK] + 1)[op[MARK]] += now - started
                started = now


@loop
def _meet(team: int, threads: int, spins: int) -> None:
    """Wait until all threads are here."""
    if threads == 1:
        return
    phase = atomic_load(team + 8 * PHASE)
    if atomic_add(team + 8 * ARRIVED, 1) == threads - 1:
        atomic_add(team + 8 * ARRIVED, -threads)
        _tell(team, PHASE)
    else:
        _wait(team, PHASE, phase, spins)


@loop
def _tell(team: int, word: int) -> None:
    """Count one more, and wake those who wait for that."""
    atomic_add(team + 8 * word, 1)
    if atomic_load(team + 8 * SLEEPERS) != 0:
        wake(team + 8 * word)


@preparation
def tell(team: int, word: int) -> None:
    """`_tell`, for Python."""
    _tell(team, word)


@preparation
def read_ticks(place: int, unused: int) -> None:
    """Write the present `ticks` to an int64 at an address."""
    longs(place, 1)[0] = ticks()


@loop
def _wait(team: int, word: int, old: int, spins: int) -> None:
    """Wait until the word has another value than `old`."""
    for _ in range(spins):
        if atomic_load(team + 8 * word) != old:
            return
        pause()
    atomic_add(team + 8 * SLEEPERS, 1)
    while atomic_load(team + 8 * word) == old:
        sleep(team + 8 * word, old)
    atomic_add(team + 8 * SLEEPERS, -1)
