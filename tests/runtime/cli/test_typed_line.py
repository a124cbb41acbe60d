"""What a person types, read as meant: paths as a shell or a file manager has them, lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stratakv.runtime.cli.typed_line import command_of, message_of, whole_message
from stratakv.runtime.cli.typed_path import path_of, unquoted
from stratakv.runtime.process.terminal import printable, reply_text


@pytest.mark.parametrize(
    "typed",
    [
        "a b.txt",
        "'a b.txt'",
        '"a b.txt"',
        r"a\ b.txt",
        "a b.txt ",
        " 'a b.txt' ",
        "file://{folder}/a%20b.txt",
        "~/a b.txt",
    ],
)
def test_paths_are_understood(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of(typed.format(folder=tmp_path)).samefile(tmp_path / "a b.txt")


@pytest.mark.parametrize(
    "name", ["'q'", r"a\ b", 'say "hi".txt', "it's.txt", "notes[old].txt", "~x", "a#b?.txt", " blank"]
)
def test_a_file_called_exactly_so_wins(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text("this one")
    (tmp_path / name.strip("'").replace("\\", "")).touch()
    monkeypatch.chdir(tmp_path)
    assert path_of(name).read_text() == "this one"
    assert path_of(f"file://{tmp_path}/{name}".replace(" ", "%20")).name in (name, name.replace("\\", ""))


@pytest.mark.parametrize(
    "typed", ["nothing.txt", "'unclosed", "~nobody-of-this-name/x", "x" * 5000, "a\0b", "file://[", "''"]
)
def test_a_path_to_nothing_raises_only_what_reading_it_raises(typed: str) -> None:
    try:
        path = path_of(typed)
    except ValueError:
        return
    with pytest.raises(OSError, match=r"."):
        path.read_text()


def test_quotes_around_a_name() -> None:
    assert [unquoted(name) for name in ("'my talk'", '"x"', "it's", "''", "'")] == ["my talk", "x", "it's", "''", "'"]


def test_lines_are_commands_or_messages() -> None:
    known = ["read", "save", "help"]
    assert command_of("/READ  a b ", known) == ("read", "a b")
    assert command_of("/help", known) == ("help", "")
    assert command_of("hello /read", known) is None
    assert command_of("//usr/bin is a folder", known) is None
    assert message_of("//usr/bin") == "/usr/bin"
    assert message_of("a // b") == "a // b"
    for line in ("/", "/ read x", "/raed x", "/[/old]"):
        with pytest.raises(ValueError, match="no command /"):
            command_of(line, known)
    with pytest.raises(ValueError, match="did you mean /read"):
        command_of("/raed x", known)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['  one """ line '], 'one """ line'),
        (['"""two', 'lines."""'], "two\nlines."),
        (['"""one"""'], "one"),
        (['"""', "a", '"""  '], "a"),
        (['""""""'], ""),
        (['"""a""" b', 'c"""'], 'a""" b\nc'),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str) -> None:
    rest = iter(lines[1:])
    assert whole_message(lines[0], lambda: next(rest)) == message
    assert next(rest, None) is None


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    hostile = "a\x1b[2J\x07b\rc\nd\u202ee\x9b31mf\ud800 [red]x[/red] :dog: é 日本"
    line = printable(hostile)
    assert line == "a\\x1b[2J\\x07b c d\\u202ee\\x9b31mf\\ud800 [red]x[/red] :dog: é 日本"
    assert len(printable("x" * 10**6)) < 2100
    assert reply_text("a\tb\n\x1b]0;title\x07\r\n\x9bx é") == "a\tb\n␛]0;title␇\n\\x9bx é"


def test_the_home_of_a_file_url_with_foreign_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("x")
    assert path_of(f"file://{tmp_path}/caf%E9.txt").read_text() == "x"
