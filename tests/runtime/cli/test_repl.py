"""The interactive chat, driven through a pipe; and its prompt in a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from stratakv.runtime import KVConfig
from stratakv.runtime.cli.repl import ChatOptions, run

SCRIPT = '''\
/help
What colour is the door?
/stats
/save door
/sessions
/set temperature 0.5
/set do_sample true
/set temprature 1
/show
/regen
/clear
/regen
/load door
/load nothing
/read {folder}/none.txt
/read {folder}/more.txt
"""Two
lines."""
/nonsense
/bye
'''


def options(model: Path, folder: Path, files: list[Path]) -> ChatOptions:
    kv = KVConfig(path=folder / "kv", gpu_gb=0.01, host_gb=0.02, budget=256)
    return ChatOptions(str(model), "auto", "auto", kv, files, None, None, {"max_new_tokens": 6})


def test_every_command(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A short text about a red door. " * 20)
    (tmp_path / "more.txt").write_text("And one about a blue door. " * 20)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(SCRIPT.format(folder=tmp_path).replace("\n", "\r"))
        run(options(tiny_llama, tmp_path, [text]))
    shown = " ".join(capsys.readouterr().out.split())
    for expected in (
        "/regen take the last reply back",
        "tokens in context · gpu",
        "tier cap used pages page reads gpu 10.0 MB",
        "saved 'door' with the KV of",
        "temperature=0.5",
        "unknown generation argument(s) temprature",
        "cache in bfloat16; index spectral, budget 256",
        "the conversation is forgotten",
        "there is no reply to regenerate",
        "tokens restored, 0 computed again",
        "no session 'nothing' for this model and these settings; saved: door",
        "none.txt: no such file",
        "no command /nonsense; /help lists them",
    ):
        assert expected in shown


@contextmanager
def chat_in_a_terminal(*arguments: str, python: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A fresh process of the chat, and this side of its terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, *python, "-m", "stratakv.runtime", "chat", *arguments]
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"}, start_new_session=True
    )
    os.close(theirs)
    try:
        yield child, ours
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_the_prompt_appears_before_the_model_is_there(tiny_llama: Path, tmp_path: Path) -> None:
    """The model loads behind the prompt, and typed text waits for it."""
    arguments = ("-m", str(tiny_llama), "--kv-dir", str(tmp_path), "-n", "4")
    with chat_in_a_terminal(*arguments, python=("-X", "importtime")) as (child, terminal):
        before = _read_until(terminal, b">>>")
        os.write(terminal, b"Hello?\r")
        shown = _read_until(terminal, b"tok/s")
        os.write(terminal, b"/bye\r")
        shown += _read_until(terminal, b"again leaves")
        os.write(terminal, b"/bye\r")
        shown += _rest(terminal)
        assert child.wait() == 0
    assert b"| stratakv.runtime.cli.repl" in before
    assert b"| stratakv.runtime.chat.runtime" not in before
    assert b"| stratakv.runtime.chat.runtime" in shown
    assert b"tokens in context" in shown


def test_a_model_that_is_not_there_ends_the_prompt_while_somebody_types(tmp_path: Path) -> None:
    """One line on stderr and exit code 2, without another key."""
    with chat_in_a_terminal("-m", str(tmp_path / "none"), "--kv-dir", str(tmp_path / "kv")) as (child, terminal):
        shown = _read_until(terminal, b">>>")
        os.write(terminal, b"half a li")
        shown += _read_until(terminal, b"stratakv: ")
        shown += _rest(terminal)
        assert child.wait() == 2
    assert b"Traceback" not in shown
    assert shown.count(b"stratakv: ") == 1


def _rest(terminal: int) -> bytes:
    """All that comes until the other end is closed."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            return shown


def _read_until(terminal: int, wanted: bytes) -> bytes:
    shown = b""
    while wanted not in shown:
        piece = os.read(terminal, 4096)
        shown += piece
        if b"\x1b[6n" in piece:  # prompt_toolkit asks where the cursor is
            os.write(terminal, b"\x1b[1;1R")
    return shown
