"""The figures of `stratakv bench` against a clock that the test moves, and where there is too little to say."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hand_clock import HandClock

from stratakv.runtime.bench.bandwidths import Bandwidths
from stratakv.runtime.bench.contestant import Contestant, TimedTurn, num_steps
from stratakv.runtime.bench.report import crossovers, describe_crossover, describe_row
from stratakv.runtime.bench.roofline import Traffic
from stratakv.runtime.bench.run import take_steps
from stratakv.storage import Counters


def test_figures_of_a_turn_by_a_clock_that_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The untimed step is in none of them; what happens between steps is not either."""
    clock = HandClock(monkeypatch)
    one, times = Recorded("stratakv", []), iter([50, 0.1, 0.2, 0.3])
    one.on_decode, one.on_extend = lambda: clock.passes(next(times)), lambda: clock.passes(2)
    monkeypatch.setattr(one, "on_step", lambda began: clock.passes(9))
    one.begin_turn(np.zeros((1, 1)), random_kv=False)
    one.take_stint([[1]] * 4, 1)
    found = one.turns[0].result()
    assert found["ttft_s"] == 2
    assert found["steps"] == 3
    assert found["tpot_ms_p50"] == pytest.approx(200)
    assert found["tpot_ms_p90"] == pytest.approx(280)
    assert found["tokens_per_s"] == pytest.approx(5)


def test_one_step_has_no_spread_and_decides_nothing() -> None:
    first = TimedTurn(1, step_s=[0.1]).result()
    assert (first["tpot_ms_p50"], first["tpot_ms_p90"], first["tokens_per_s"]) == (100, None, 10)
    rows = [
        {"context": context, "batch": 1, "contestants": [
            {"name": "stratakv bounds", "first_turn": TimedTurn(1, step_s=[0.1] * steps).result()},
            {"name": "other", "first_turn": TimedTurn(1, step_s=[0.2] * steps).result()},
        ]}
        for context, steps in ((100, 9), (200, 1))
    ]  # fmt: skip
    (found,) = crossovers(rows)
    assert (found["ahead_from"], found["undecided"]) == (None, [200])
    assert "undecided" in describe_crossover(found)
    (decided,) = crossovers(rows[:1])
    assert (decided["ahead_from"], decided["undecided"]) == (100, [])
    row = {**rows[1], "left_out": {}, "random_kv": False}
    row["contestants"] = [{**one, "second_turn": one["first_turn"]} for one in row["contestants"]]
    assert "100.0 / -, 10.0, -" in "\n".join(describe_row(row))


def test_shares_stay_between_none_and_all() -> None:
    """A step faster than the roofline was served by caches: there is no share of it. What was waited for longer than
    any edge was busy was not hidden at all."""
    bandwidths = Bandwidths(memory=100.0, link=100.0, disk=100.0)
    traffic = Traffic(weights=50.0, kv=50.0)
    assert traffic.against(bandwidths, 2.0)["share"] == 0.5
    assert traffic.against(bandwidths, 0.5)["share"] is None
    assert traffic.against(bandwidths, 0.5)["bound_s"] == 1
    counted = Counters(disk_reads=1, host_reads=2, gpu_reads=1, row_hits=3, row_misses=1)
    assert (counted.hit_rate, counted.device_hit_rate, counted.row_hit_rate) == (0.75, 0.25, 0.75)
    since = counted.since(Counters(disk_reads=1, row_hits=3, row_misses=1))
    assert (since.hit_rate, since.device_hit_rate, since.row_hit_rate) == (1, pytest.approx(1 / 3), None)
    assert (Counters().hit_rate, Counters().device_hit_rate) == (None, None)


class Recorded(Contestant):
    """Writes down who decodes when."""

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__(1, {})
        self.name, self.diary = name, diary
        self.on_decode: Callable[[], object] = lambda: None
        self.on_extend: Callable[[], object] = lambda: None

    def extend(self, prompts: np.ndarray) -> None:
        self.on_extend()

    def fill(self, prompts: np.ndarray) -> None:
        pass

    def decode(self, tokens: list[int]) -> None:
        self.diary.append(self.name)
        self.on_decode()


def test_contestants_take_turns_in_stints() -> None:
    diary: list[str] = []
    both = [Recorded("a", diary), Recorded("b", diary)]
    for one in both:
        one.begin_turn(np.zeros((1, 1)), random_kv=False)
    take_steps(list(both), np.zeros((1, num_steps(40)), dtype=np.int64), 40)
    expected = [(name, size) for size in (4 + 16, 1 + 16, 1 + 8) for name in "ab"]
    assert [(name, len(list(run))) for name, run in itertools.groupby(diary)] == expected
    assert [len(one.turns[0].step_s) for one in both] == [40, 40]
