"""Documents from files, pipes and standard input: each is read once, and a pipe that nobody writes into is not waited
for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import RECALL
from typer.testing import CliRunner, Result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli import chat_command, chat_setup
from stratakv.runtime.cli.app import app
from stratakv.runtime.process import standard_input


def chat(store: Path, *arguments: str | Path, stdin: str | None = None) -> Result:
    command = ["chat", "-m", RECALL, "--kv-dir", store, "--disk-kv-gb", "0.2", "-n", "3", *arguments]
    return CliRunner().invoke(app, list(map(str, command)), input=stdin)


def tokens(result: Result) -> int:
    assert result.exit_code == 0, result.stderr
    return int(json.loads(result.stdout)["usage"]["prompt_tokens"])


def test_every_way_to_give_a_document_reads_it_once(tmp_path: Path) -> None:
    (tmp_path / "stdin").write_text("k1 v2\n")
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("k1 v2\n")
    asked = ("-p", "? k1", "--json")
    alone = tokens(chat(tmp_path / "kv", *asked))
    as_file = tokens(chat(tmp_path / "kv", "-f", tmp_path / "stdin", *asked))
    assert as_file > alone
    assert tokens(chat(tmp_path / "kv", *asked, stdin="k1 v2\n")) == as_file
    assert tokens(chat(tmp_path / "kv", *asked, stdin="")) == alone
    assert tokens(chat(tmp_path / "kv", "-f", "-", *asked, stdin="k1 v2\n")) == as_file
    assert tokens(chat(tmp_path / "kv", "-f", "/dev/stdin", *asked, stdin="k1 v2\n")) == as_file
    assert tokens(chat(tmp_path / "kv", "-f", tmp_path / os.fsdecode(b"caf\xe9"), *asked)) == as_file
    reading, writing = os.pipe()
    os.write(writing, b"k1 v2\n")
    os.close(writing)
    try:
        assert tokens(chat(tmp_path / "kv", "-f", f"/dev/fd/{reading}", *asked)) == as_file
    finally:
        os.close(reading)


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


def test_a_pipe_may_be_slower_than_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes while the model loads is used."""
    expected = tokens(chat(tmp_path, "-p", "? k1", "--json", stdin="k1 v2\n"))
    monkeypatch.setattr(standard_input, "_AT_ONCE_S", 0.01)
    reading, writing = os.pipe()
    load = Runtime.load

    def write_and_load(*args: Any, **kwargs: Any) -> Runtime:
        os.write(writing, b"k1 v2\n")
        os.close(writing)
        return load(*args, **kwargs)

    monkeypatch.setattr(Runtime, "load", write_and_load)
    kv = KVConfig(path=tmp_path, disk_gb=0.2)
    options = chat_setup.ChatOptions(str(RECALL), "auto", "auto", kv, [], None, None, {"max_new_tokens": 3})
    with os.fdopen(reading) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        chat_command._converse(options, "? k1", True)
    assert json.loads(capsys.readouterr().out)["usage"]["prompt_tokens"] == expected


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
