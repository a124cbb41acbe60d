"""Branches: on a device each begins behind the main stream and is joined; on a CPU work is done where it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from stratakv.runtime.engine.branches import Branches


class Stream:
    """Notes which streams wait for which."""

    made = 0
    waits: list[tuple[str, str]]

    def __init__(self, device: torch.device | None = None) -> None:
        Stream.made += 1
        self.name = f"side {Stream.made}"

    def wait_stream(self, other: Stream) -> None:
        Stream.waits.append((self.name, other.name))


def test_a_branch_begins_behind_the_main_stream_and_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    main, told = Stream(), list[str]()
    main.name, Stream.made, Stream.waits = "main", 0, []
    now = [main]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[-1])
    branches = Branches(torch.device("cuda"), 4)
    for number in range(3):
        with branches.of(number):
            told.append(now[-1].name)
    branches.join()
    assert told == ["main", "side 1", "side 2"]
    assert Stream.waits == [("side 1", "main"), ("side 2", "main"), ("main", "side 1"), ("main", "side 2")]
    Stream.waits = []
    branches.join()
    assert not Stream.waits, "a recorded step would wait for streams that are no part of it"


def test_a_cpu_has_no_branches() -> None:
    branches, told = Branches(torch.device("cpu"), 4), list[int]()
    for number in range(4):
        with branches.of(number):
            told.append(number)
    branches.join()
    assert told == [0, 1, 2, 3]
