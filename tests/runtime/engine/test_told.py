"""Tokens on their way to the host: they are waited for, and nothing behind them is; the step has its own time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_clock import HandClock

from stratakv.runtime.engine import told as module
from stratakv.runtime.engine.told import Told


def test_a_step_takes_from_its_beginning_to_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(monkeypatch)
    told = Told(torch.device("cpu"))
    clock.passes(1)
    with told:
        clock.passes(2)
    clock.passes(3)
    tokens = torch.tensor([4, 5])
    told.note(tokens)
    clock.passes(7)
    tokens.zero_()
    assert (told.read(), told.seconds) == ([4, 5], pytest.approx(5))


def test_the_host_waits_for_the_moment_behind_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the device was told first, and afterwards."""
    events: list[Any] = []

    class Event:
        def record(self, stream: str) -> None:
            events.append(("recorded", self, stream))

        def synchronize(self) -> None:
            events.append(("waited", self))

        def elapsed_time(self, later: Event) -> float:
            events.append(("between", self, later))
            return 12.0

    monkeypatch.setattr(module, "_moment", lambda device: Event())
    monkeypatch.setattr(module, "_stream", lambda device: f"of {device}")
    told = Told(torch.device("cuda:1"))
    with told:
        events.append("begun")
    told.note(torch.tensor([3]))
    assert (told.read(), told.seconds) == ([3], 0.012)
    began, ended = told._began, told._ended
    assert events == [
        ("recorded", began, "of cuda:1"), "begun", ("recorded", ended, "of cuda:1"), ("waited", ended),
        ("between", began, ended),
    ]  # fmt: skip
