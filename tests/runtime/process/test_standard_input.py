"""Standard input as it is found: a pipe that nobody writes into is not waited for, one that has begun is read whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from stratakv.runtime.process import standard_input


@pytest.fixture
def open_pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input is a pipe that somebody else keeps open; its writing end."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield writing
    os.close(writing)


def test_a_pipe_that_nobody_writes_into_is_not_waited_for(
    open_pipe: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(standard_input, "PATIENCE_S", 0.01)
    monkeypatch.setattr(standard_input, "_AT_ONCE_S", 0.01)
    piped = standard_input.PipedText()
    assert piped.at_once() is None
    assert piped.late() == b""
    assert "nothing came through stdin" in capsys.readouterr().err


def test_a_pipe_that_has_begun_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"text")
    os.close(writing)
    with os.fdopen(reading) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert standard_input.PipedText().at_once() == b"text"


def test_no_standard_input_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert standard_input.PipedText().at_once() == b""
    assert standard_input.PipedText().at_once() == b""  # closed by now
    monkeypatch.setattr(sys, "stdin", None)
    assert standard_input.PipedText().at_once() == b""
    assert not standard_input.is_terminal()
    with pytest.raises(ValueError, match="stdin is closed"):
        standard_input.read_standard_input()
