"""`stratakv chat`: what was given becomes settings and documents, and where nobody types it answers once."""

from __future__ import annotations

import json
import os
import sys
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[chat_setup.ChatOptions, str, bool]]:
    """What would have been asked of a model."""
    found: list[tuple[chat_setup.ChatOptions, str, bool]] = []
    monkeypatch.setattr("stratakv.runtime.cli.one_shot.one_shot", lambda *arguments: found.append(arguments))
    return found


@pytest.mark.parametrize(
    ("arguments", "generation"),
    [
        ([], {}),
        (["--temp", "0"], {"do_sample": False}),
        (["--temp", "0.5", "--top-k", "0"], {"do_sample": True, "temperature": 0.5, "top_k": 0}),
        (["-n", "1e3", "--seed", "3"], {"max_new_tokens": 1000, "seed": 3}),
        (["--stop", r"a\n", "--stop", "b"], {"stop_strings": ("a\n", "b")}),
        (["--drop-thinking"], {"drop_thinking": True}),
    ],
)
def test_only_what_was_given_is_a_setting(
    arguments: list[str], generation: dict[str, Any], asked: list[Any], tmp_path: Path
) -> None:
    """A resumed session keeps the others as they were saved."""
    result = CliRunner().invoke(app, ["chat", "--kv-dir", str(tmp_path), "-p", "hi", *arguments])
    assert result.exit_code == 0, result.stderr
    ((options, prompt, as_json),) = asked
    assert (options.generation, options.kv.path, prompt, as_json) == (generation, tmp_path, "hi", False)


def test_piped_text_is_the_question_or_stands_beside_it(asked: list[Any], tmp_path: Path) -> None:
    for arguments in ([], ["-p", "hi"]):
        CliRunner().invoke(app, ["chat", "--kv-dir", str(tmp_path), *arguments], input="words\n")
    assert [(prompt, options.piped, options.late) for options, prompt, _ in asked] == [
        ("words\n", "", None), ("hi", "words\n", None),
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["--json"], ["--save", "mine"]])
def test_somebody_who_types_saves_by_a_command(
    arguments: list[str], asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_input, "is_terminal", lambda: True)
    result = CliRunner().invoke(app, ["chat", "--kv-dir", str(tmp_path), *arguments])
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert result.stderr.startswith("stratakv: --json and --save go with -p; in the chat /save NAME keeps")
