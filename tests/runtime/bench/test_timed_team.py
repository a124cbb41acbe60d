"""A timed team notes a step's tables under their marks, and what is before and between them by the clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compiled_rows import nothing_yet, product_row, team
from hand_clock import HandClock

from stratakv.kernels.compiled import record as r
from stratakv.runtime.api.figures import Stopwatch
from stratakv.runtime.bench import timed_team
from stratakv.runtime.bench.timed_team import TimedTeam

WEIGHT, X, Y = torch.randn(50, 32), torch.randn(1, 32), nothing_yet(1, 50)
"""Rows have their addresses."""


def marked(mark: int, rows: int = 40) -> np.ndarray:
    row = product_row(WEIGHT[:rows], Y[:, :rows], X, r.F32)
    row[r.MARK] = mark
    return row[None]


class SlowTeam:
    """Takes 2 seconds for a table, in which each row has 100 ticks; waits half a second for pages before."""

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.waited = clock, 0.0

    def run(self, table: np.ndarray, threads: int | None, times: np.ndarray) -> None:
        self.clock.passes(2)
        for row in table:
            times[row[r.MARK]] += 100


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    return HandClock(monkeypatch)


def test_a_step_is_told_by_mark_and_by_the_clock(clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(0.0, 0), (10.0, 2000)])  # a tick is 5 ms
    monkeypatch.setattr(timed_team, "_moment", lambda: next(moments))
    slow: Any = SlowTeam(clock)
    timed = TimedTeam(slow, lambda: slow.waited)
    timed.run(marked(r.M_OUT))  # of a step that is not timed
    clock.passes(7)
    timed.begin()
    clock.passes(3)
    timed.run(np.concatenate([marked(r.M_QKV), marked(r.M_HEADS)]))
    slow.waited = 0.5
    clock.passes(1)
    timed.run(marked(r.M_QKV, rows=50))
    clock.passes(0.25)
    clock.passes(9)  # somebody else has the core before it is told
    timed.end(1000 + 2 + 7, 3 + 2 + 1 + 2 + 0.25)
    (step,) = timed.take()
    assert (step.step_s, step.prepare_s, step.between_s, step.waits_s) == (8.25, 3.0, 1.0, 0.5)
    assert {mark: float(s) for mark, s in enumerate(step.operations_s) if s} == {r.M_QKV: 1.0, r.M_HEADS: 0.5}
    assert step.num_bytes[r.M_QKV] == 4 * 32 * (40 + 50)


def test_each_step_is_a_step_of_its_own_and_is_taken_once() -> None:
    timed = TimedTeam(team(), lambda: 0.0)
    for _ in range(3):
        with Stopwatch() as watch:
            for mark in (r.M_DOWN, r.M_HEAD):
                timed.run(marked(mark), 2)
        timed.end(watch.began, watch.seconds)
    found = timed.take()
    assert len(found) == 3
    for step in found:
        assert (
            np.flatnonzero(step.operations_s).tolist()
            == np.flatnonzero(step.num_bytes).tolist()
            == [r.M_DOWN, r.M_HEAD]
        )
        assert step.between_s > 0
        assert step.prepare_s >= 0
    assert timed.take() == []
