"""The chat's loop, line by line on a tiny model: nothing that can be typed ends it or is shown as something else."""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stratakv.runtime import Chat, KVConfig, Runtime, StratakvError
from stratakv.runtime.chat.documents import Document
from stratakv.runtime.cli.chat_setup import ChatOptions, begin
from stratakv.runtime.cli.repl import Repl
from stratakv.runtime.process.terminal import make_console

KV: dict[str, Any] = {"host_gb": 0.02, "disk_gb": 0.2, "budget": 256}


class Typist(Repl):
    """The loop with somebody at it: answers come from a list, and its end is the end of the input."""

    def __init__(
        self, runtime: Runtime, *lines: str | type[BaseException], documents: Any = None, **changes: Any
    ) -> None:
        options = ChatOptions("tiny", "auto", "auto", runtime.config, [], None, None, {"max_new_tokens": 2})
        options = replace(options, **changes)
        opening: Future[Any] = Future()
        opening.set_result((runtime, begin(runtime, options, options.session)))
        self.screen = io.StringIO()
        console = make_console()
        console.file = self.screen
        super().__init__(options, console, opening, documents)
        self.asks = True
        self.lines = list(lines)

    def _typed(self, prompt: str) -> str:
        self.screen.write(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    @property
    def shown(self) -> str:
        return " ".join(self.screen.getvalue().split())

    def run_through(self) -> str:
        """All lines; returns what was shown. The runtime stays open for the next test."""
        while True:
            try:
                if self._handle(self._line()):
                    return self.shown
            except KeyboardInterrupt:
                continue


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), **KV)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as loaded:
        yield loaded


def talk(runtime: Runtime, *lines: str | type[BaseException], **changes: Any) -> str:
    return Typist(runtime, *lines, **changes).run_through()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature hot", "temperature is a number above 0, which samples, or 0, which is greedy, not 'hot'"),
        ("/set max_new_tokens many", "max_new_tokens is a whole number from 1"),
        ("/set do_sample [red]", "not '[red]'"),
        ("/set [/b] 1", "unknown generation argument(s) [/b]"),
        ("/read notes[/old].txt", "notes[/old].txt: no such file"),
        ("/read", "/read needs a file name"),
        ("/read ~nobody-of-this-name/x", "~nobody-of-this-name/x: no such file"),
        ("/read /dev/zero", "/dev/zero is a device, not a text file"),
        ("/load [bold]x", "no session '[bold]x'"),
        ("/load", "/load needs a name"),
        ("/save", "/save needs a name"),
        ("/save a/b", "printable bytes without slashes, not 'a/b'"),
        ("/[/nonsense]", "no command /[/nonsense]; /help lists them"),
        ("/", "no command /; /help lists them"),
        ("/clear everything", "/clear takes nothing after it, not 'everything'"),
        ("/regen", "there is no reply to regenerate"),
        ("caf\udce9", "what was typed is not UTF-8 text"),
        ("/save \x1b[2Jx", "not '\\x1b[2Jx'"),
        ("/HELP", "/regen take the last reply back"),
    ],
)
def test_one_line_says_what_is_wrong(runtime: Runtime, line: str, said: str) -> None:
    typist = Typist(runtime, line)
    before = typist.chat.generation
    assert said in typist.run_through()
    assert typist.chat.generation == before
    assert "Traceback" not in typist.shown


@pytest.mark.parametrize("line", ["/set do_sample False", "/set do_sample no", "/set temperature 0"])
def test_what_means_off_is_off(runtime: Runtime, line: str) -> None:
    typist = Typist(runtime, "/set temperature 0.9", line)
    assert "replies are sampled at temperature 0.9" in typist.run_through()
    assert "replies are greedy" in typist.shown
    assert not typist.chat.generation.do_sample


def test_stop_strings_are_typed_plainly_and_cleared(runtime: Runtime) -> None:
    typist = Typist(runtime, r"/set stop_strings The end.\n")
    typist.run_through()
    assert typist.chat.generation.stop_strings == ("The end.\n",)
    typist.lines = ["/set stop_strings"]
    typist.run_through()
    assert typist.chat.generation.stop_strings == ()


def test_a_path_with_blanks_and_brackets_is_read(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "a [b] c.txt").write_text("A short text. " * 3)
    typist = Typist(runtime, f"/read '{tmp_path}/a [b] c.txt'", f"/read {tmp_path}/a\\ \\[b\\]\\ c.txt", "/bye")
    typist.run_through()
    assert [message["content"] for message in typist.chat.messages] == ["a [b] c.txt"] * 2


def test_a_slash_is_sent_with_two(runtime: Runtime) -> None:
    typist = Typist(runtime, "//etc is a folder", "/bye", "/bye")
    typist.run_through()
    assert typist.chat.messages[0]["content"] == "/etc is a folder"


def test_leaving_with_something_said_asks_once(runtime: Runtime) -> None:
    shown = talk(runtime, "Hello?", "/bye", "/stats", "/bye", "/bye", "never reached")
    assert shown.count("the conversation is not saved") == 2
    typist = Typist(runtime, "Hello?", EOFError, EOFError, "never reached")
    assert "again leaves" in typist.run_through()
    assert typist.lines == ["never reached"]
    assert "not saved" not in talk(runtime, "/stats", "/bye")
    assert "not saved" not in talk(runtime, "Hello?", "/save said", "/bye")


def test_no_one_to_ask_is_not_asked(runtime: Runtime) -> None:
    typist = Typist(runtime, "Hello?", "/bye", "never reached")
    typist.asks = False
    assert "not saved" not in typist.run_through()
    assert typist.lines == ["never reached"]


def test_an_unsaved_conversation_is_not_forgotten_by_accident(runtime: Runtime) -> None:
    talk(runtime, "A first one.", "/save first", "/bye")
    for line in ("/clear", "/load first"):
        typist = Typist(runtime, "Hello?", line, "n", "/bye", "/bye")
        assert "forget it? [y/N]" in typist.run_through()
        assert typist.chat.messages[0]["content"] == "Hello?"
        typist = Typist(runtime, "Hello?", line, "y", "/bye")
        typist.run_through()
        assert all(message["content"] != "Hello?" for message in typist.chat.messages)


def test_what_is_not_there_is_not_asked_about(runtime: Runtime) -> None:
    typist = Typist(runtime, "Hello?", "/load nobody saved it", "/bye", "/bye")
    said = typist.run_through()
    assert "no session 'nobody saved it'" in said
    assert "forget it?" not in said
    assert typist.chat.messages[0]["content"] == "Hello?"


def test_saving_over_another_session_asks(runtime: Runtime) -> None:
    talk(runtime, "One.", "/save mine", "/bye")
    refused = talk(runtime, "Two.", "/save mine", "no", "/bye", "/bye")
    assert re.search(r"there is a session 'mine' already, \d+ tokens saved ", refused)
    assert "; replace it? [y/N]" in refused
    assert "not saved" in refused
    assert runtime.chat(session="mine").messages[0]["content"] == "One."
    again = talk(runtime, "/load mine", "More.", "/save", "/bye")
    assert "replace it?" not in again
    assert len(runtime.chat(session="mine").messages) == 4
    assert "replace it?" in talk(runtime, "Two.", "/save 'mine'", "y", "/bye")
    assert runtime.chat(session="mine").messages[0]["content"] == "Two."


def test_what_the_command_line_gave_wins_over_a_session(runtime: Runtime) -> None:
    talk(runtime, "/set top_k 7", "One.", "/save kept", "/bye")
    chat = Typist(runtime, session="kept", generation={"max_new_tokens": 3}).chat
    assert (chat.generation.max_new_tokens, chat.generation.top_k) == (3, 7)


def test_a_message_in_quotes_that_is_never_closed_is_dropped(runtime: Runtime) -> None:
    for end in (KeyboardInterrupt, EOFError):
        typist = Typist(runtime, '"""never', "closed", end, "/bye")
        assert "the message was dropped" in typist.run_through()
        assert typist.chat.messages == []


def test_ctrl_c_while_a_document_is_read_leaves_it_for_later(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    first, read_text = [KeyboardInterrupt], Chat.read_text

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if first:
            raise first.pop()
        return read_text(*args, **kwargs)

    monkeypatch.setattr(Chat, "read_text", interrupted)
    typist = Typist(runtime, "Hello?", "Hello again?", "/bye", "/bye", documents=[Document("a.txt", "A short text.")])
    assert "stopped" in typist.run_through()
    assert typist.chat.messages[1]["content"] == "Hello again?"
    assert [message["role"] for message in typist.chat.messages] == ["document", "user", "assistant"]


class Broken(Exception):
    """One that nobody foresaw."""


@pytest.mark.parametrize(
    "error", [Broken("odd"), MemoryError(), RecursionError("deep"), OSError(5, "I/O error"), TypeError("x")]
)
def test_no_error_ends_the_loop(
    error: Exception, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typist = Typist(runtime, "Hello?", "/show", "/bye")

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(type(typist.chat), "stream", fails)
    shown = typist.run_through()
    assert "cache in" in shown
    is_fault = isinstance(error, Broken | TypeError)
    assert ("please report it: " + type(error).__name__ in shown) == is_fault
    assert "Traceback" not in capsys.readouterr().err
    if is_fault:
        monkeypatch.setenv("STRATAKV_DEBUG", "1")
        Typist(runtime, "Hello?", "/bye").run_through()
        assert "Traceback" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_program_in_one_line(tmp_path: Path) -> None:
    opening: Future[Any] = Future()
    opening.set_exception(StratakvError("no such model"))
    options = ChatOptions("none", "auto", "auto", KVConfig(path=tmp_path), [], None, None, {})
    console = Console(file=io.StringIO(), markup=False)
    with pytest.raises(StratakvError, match="no such model"):
        Repl(options, console, opening).loop()


COMMANDS = [
    "help", "?", "read", "stats", "save", "load", "sessions", "set", "show", "regen", "clear", "bye", "exit", "quit",
    "", "READ", "Set", "nonsense", "[/b]", "re\x00ad",
]  # fmt: skip
SETTINGS = [
    "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop_strings",
    "seed", "ignore_eos", "max_tokens", "stop", "temp", "self", "__class__", "", "cls", "base",
]  # fmt: skip
VALUES = [
    "", "0", "1", "-1", "2.5", "1e3", "1e400", "-1e400", "nan", "inf", "none", "null", "true", "False", "yes", "off",
    "hot", "[]", "[1]", '[""]', '["a"]', "{}", '"', "'", '"x"', "[red]x[/red]", "[/b]", "\\", "\\n", "\x1b[31m",
    "\ud800", "é", "日本", "😀", "9" * 5000, "[" * 3000, "a b c", "=", "==", "5 = 6", "none.txt", ".", "/", "/dev/null",
    "/dev/zero", "~", "~nobody-of-this-name", "file://x", "file:///", "a\\ b", "'a b", "a\0b", "x" * 300, "../up",
    "kept", "two words", ":dog:", "\u202e", "%s", "\t", "--help", "$(ls)", "a;b", "`x`", "{0}", "\x9b2J", "\r", "a\nb",
]  # fmt: skip
PIECES = [
    *"[]()\"'/\\{}=:;,.?!<>|&%$#@^*+-_~` \t",
    "\x00",
    "\x1b",
    "\x7f",
    "\x9b",
    "\ud800",
    "\udcff",
    "\u202e",
    "é",
    "日",
    "😀",
    '"""',
]


def typed_lines(rng: random.Random, count: int) -> Iterator[str]:
    """Hand-made ones first, every command with every value and every setting with every value; then random ones."""
    made = [f"/{command} {value}" for command in COMMANDS for value in VALUES]
    made += [f"/set {name}{between}{value}" for name in SETTINGS for value in VALUES for between in (" ", "=")]
    rng.shuffle(made)
    yield from made
    for _ in range(count - len(made)):
        if rng.random() < 0.6:
            words = [rng.choice([*VALUES, *SETTINGS]) for _ in range(rng.randrange(3))]
            yield "/" * rng.randrange(1, 3) + rng.choice(COMMANDS) + rng.choice(" \t=") + " ".join(words)
        else:
            yield "".join(rng.choice([*PIECES, "a", "b", " "]) for _ in range(rng.randrange(24)))


def test_two_thousand_lines_end_nothing(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typist = Typist(runtime)
    rng = random.Random(0)
    allowed = {"\n", "\t"}
    for number, line in enumerate(typed_lines(rng, 2000)):
        typist.lines = [line, rng.choice(["y", "n", '"""'])]
        typist.screen.seek(0)
        typist.screen.truncate()
        left = typist._handle(typist._line())
        shown = typist.screen.getvalue()
        where = f"line {number}: {line!r}: {shown!r}"
        assert not left or line.lstrip("/").lower().startswith(("bye", "exit", "quit", '"""')), where
        assert "a fault of the program" not in shown, where
        assert not [c for c in shown if not c.isprintable() and c not in allowed], where
        typist.chat.generation = replace(typist.chat.generation, max_new_tokens=1)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert typist.chat is not None
    assert sys.stdout is not None
