"""A terminal shows other people's words and never obeys them."""

from __future__ import annotations

import os
import sys

import pytest

from stratakv.runtime.process.terminal import printable, reply_text, shown

CLEAR = "\x1b[2J"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\n  lines\t", "two lines"),
        (f"a{CLEAR}b", r"a\x1b[2Jb"),
        ("é 漢 \u00a0x", "é 漢 x"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("a\u202eb", r"a\u202eb"),
    ],
)
def test_one_line_without_controls(text: str, line: str) -> None:
    assert printable(text) == line
    printable(text).encode()


def test_a_whole_file_in_an_error_is_cut() -> None:
    found = printable("a" * 5000 + "b" * 5000)
    assert len(found) == 2005
    assert found.startswith("aaa")
    assert found.endswith("bbb")


def test_a_reply_keeps_its_lines_and_tabs() -> None:
    assert reply_text("one\n\ttwo\r\n") == "one\n\ttwo\n"
    assert reply_text(CLEAR) == "␛[2J"
    assert reply_text("\x7f\x9b") == r"␡\x9b"


def test_files_and_pipes_get_a_reply_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, expected in ((False, CLEAR), (True, "␛[2J")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        assert shown(CLEAR) == expected
