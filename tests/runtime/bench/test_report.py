"""Who overtakes whom, and from where on."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.runtime.bench.report import crossovers, describe_crossover


def rows(ours: list[float], theirs: list[float], *, steps: int = 20) -> list[dict[str, Any]]:
    def one(name: str, ms: float) -> dict[str, Any]:
        return {"name": name, "first_turn": {"tpot_ms_p50": ms, "steps": steps}}

    return [
        {"context": 1000 * number, "batch": 1, "contestants": [one("stratakv bounds", mine), one("dense", other)]}
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("ours", "ahead_from", "says"),
    [
        ([9, 9, 9], 1000, "ahead from 1000 tokens on"),
        ([11, 9, 9], 2000, "ahead from 2000 tokens on"),
        ([9, 11, 9], 3000, "ahead from 3000 tokens on"),
        ([9, 9, 10], None, "not ahead at 3000 tokens"),
    ],
)
def test_ahead_from_there_on_at_every_length(ours: list[float], ahead_from: int | None, says: str) -> None:
    (found,) = crossovers(rows(ours, [10, 10, 10]))
    assert (found["ahead_from"], found["undecided"]) == (ahead_from, [])
    assert describe_crossover(found) == (f"stratakv bounds against dense, batch 1: {says} (measured: 1000, 2000, 3000)")


def test_one_step_decides_nothing() -> None:
    (found,) = crossovers(rows([9], [10], steps=1))
    assert (found["ahead_from"], found["undecided"]) == (None, [1000])
    assert "undecided, one step is too few" in describe_crossover(found)


def test_contexts_that_one_was_not_timed_at_do_not_count() -> None:
    timed = rows([11, 9], [10, 10])
    timed[0]["contestants"].pop()
    (found,) = crossovers(timed)
    assert (found["contexts"], found["ahead_from"]) == ([2000], 2000)
