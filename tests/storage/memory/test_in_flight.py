"""What a device still reads is waited for before it goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stratakv.storage import Arena
from stratakv.storage.memory.in_flight import InFlight


class Stream:
    """Of a device that is always late."""

    def __init__(self, number: int, done: list[int]) -> None:
        self.stream_id, self._done = number, done

    def record_event(self) -> Stream:
        return self

    def synchronize(self) -> None:
        self._done.append(self.stream_id)


def test_an_eviction_waits_for_the_last_read_of_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    streams = iter([Stream(1, done), Stream(2, done), Stream(1, done)])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: next(streams))
    arena = Arena("host", 4096, 512, torch.device("cpu"))
    slots = arena.take(2, 0)
    arena.settle(slots, np.array([5, 6]), 0)
    states: list[Any] = []
    monkeypatch.setattr(Stream, "synchronize", lambda self: states.append((self.stream_id, arena.state[slots[0]])))
    for _ in range(3):
        arena.in_flight.note(torch.device("cuda"))
    before = arena.state[slots[0]]
    arena.evict(slots[:1])
    assert sorted(states) == [(1, before), (2, before)], "each once, and before anybody may write there"
    arena.evict(slots[1:])
    assert len(states) == 2


def test_who_waits_beside_another_waits_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, seen = InFlight(), []
    stream = Stream(1, [])

    def synchronize(self: Stream) -> None:
        if not seen:
            seen.append("first")
            reads.wait()  # as another thread would, before this one has returned
        else:
            seen.append("second")

    monkeypatch.setattr(Stream, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    reads.note(torch.device("cuda"))
    reads.wait()
    assert seen == ["first", "second"]


def test_a_cpu_is_never_late() -> None:
    reads = InFlight()
    reads.note(torch.device("cpu"))
    assert not reads._last
    reads.wait()
