"""A bandwidth is the bytes of the best try over the time that it took, by a clock that the test moves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_runs import small_probes
from hand_clock import HandClock

from stratakv.runtime.bench.bandwidths import Bandwidths, measure_bandwidths

BYTES = 1 << 20
CPU = torch.device("cpu")


class Tries:
    """A function that is called for each try, and takes so many seconds each time."""

    def __init__(self, clock: HandClock, work: Any, *seconds: float) -> None:
        self.clock, self.work, self.left = clock, work, list(seconds)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.passes(self.left.pop(0))
        return self.work(*args, **kwargs)


def slow(owner: Any, name: str, patch: pytest.MonkeyPatch, clock: HandClock, *seconds: float) -> Tries:
    tries = Tries(clock, getattr(owner, name), *seconds)
    patch.setattr(owner, name, lambda *args, **kwargs: tries(*args, **kwargs))
    return tries


@pytest.mark.parametrize(
    ("sum_s", "copy_s", "memory"), [(0.5, 4.0, BYTES / 0.5), (4.0, 0.5, 2 * BYTES / 0.5)], ids=["read", "copied"]
)
def test_the_best_try_counts(
    sum_s: float, copy_s: float, memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try of memory is not timed. What is copied there is read and written."""
    small_probes(monkeypatch)
    clock = HandClock(monkeypatch)
    sums = slow(torch.Tensor, "sum", monkeypatch, clock, 0.01, 9, 8, sum_s, 7, 6)
    copies = slow(torch.Tensor, "copy_", monkeypatch, clock, 0.01, 9, copy_s, 9, 9, 9, 0.01, 9, 9, 0.25, 9, 9)
    reads = slow(os, "preadv", monkeypatch, clock, 9, 9, 9, 9, 2)
    assert measure_bandwidths(CPU, tmp_path) == Bandwidths(memory=memory, link=BYTES / 0.25, disk=BYTES / 2)
    assert sums.left == copies.left == reads.left == []
    assert list(tmp_path.iterdir()) == [], "what was read is gone"


def test_an_edge_that_is_slowed_down_is_no_faster_than_it_is() -> None:
    measured = Bandwidths(memory=8e9, link=4e9, disk=1e9)
    assert measured.limited(None, None) == measured
    assert measured.limited(3, 0.5) == Bandwidths(memory=8e9, link=3e9, disk=0.5e9)
    assert measured.limited(9, 9) == measured
    assert measured.limited(3, None).as_dict() == {
        "memory_bytes_per_s": 8e9, "link_bytes_per_s": 3e9, "disk_bytes_per_s": 1e9,
    }  # fmt: skip
