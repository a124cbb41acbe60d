"""A log gets a line for each tenth of a run, with the time that is left; a terminal a bar that is gone at the end."""

from __future__ import annotations

import io
import sys

import pytest
from hand_clock import HandClock

from stratakv.runtime.evaluation.progress import Bar


def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steps: int, seconds: float) -> list[str]:
    """What is said of a run of so many steps, each of which takes so long."""
    clock = HandClock(monkeypatch)
    with Bar() as bar:
        clock.passes(1000)  # to load a model
        bar.start(steps)
        for step in range(steps):
            bar.advance(f"step {step}")
            clock.passes(seconds)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_for_each_tenth_says_how_long_the_rest_may_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(monkeypatch, capsys, 40, 60)
    assert found == [f"{done} of 40, step {done}; about {40 - done} min left" for done in range(4, 40, 4)]


def test_a_short_run_says_each_step_but_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines(monkeypatch, capsys, 3, 240)
    assert found == ["1 of 3, step 1; about 8 min left", "2 of 3, step 2; about 4 min left"]


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Bar() as bar:
        bar.start(3)
        for step in ("step [0]", "step [/1]", "step [2]"):  # brackets are no markup
            bar.advance(step)
    shown = terminal.getvalue()
    assert "2/3" in shown
    assert "step [2]" in shown
    assert "min left" not in shown
    assert shown.endswith("\x1b[2K"), "the bar's line is empty again"
