"""What shells, pipes and machines do to the command: one clear line before any work, or it simply works."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from places import RECALL, ROOT
from recall import NAMES
from typer.testing import CliRunner, Result

from stratakv.runtime import GenerationConfig, Runtime
from stratakv.runtime.chat.documents import document_name
from stratakv.runtime.cli import app as cli
from stratakv.runtime.cli import chat_setup
from stratakv.runtime.cli.app import app
from stratakv.runtime.cli.one_line import CAPS, with_flags
from stratakv.runtime.engine import machine_caps
from stratakv.runtime.evaluation.progress import Bar
from stratakv.runtime.process.terminal import make_console, shown

COMMAND = [sys.executable, "-m", "stratakv.runtime"]
assert "k1" in NAMES


def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def chat(store: Path, *arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return run("chat", "-m", RECALL, "--kv-dir", store, "--disk-kv-gb", "0.2", "-n", "3", *arguments, stdin=stdin)


def one_line(result: Result, code: int = 2) -> str:
    """What was said on stderr; asserts that it is one line and all there is."""
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("stratakv: ")
    return result.stderr


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is too late for what is tried here."""

    def load(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(Runtime, "load", load)
    monkeypatch.setattr("stratakv.runtime.model.model.Model.load", load)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-n", "0"], "--n-predict is"),
        (["-n", "-5"], "--n-predict is"),
        (["-n", "abc"], "'--n-predict': a whole number, not 'abc'"),
        (["--top-p", "2"], "--top-p is in (0, 1], not 2"),
        (["--top-p", "nan"], "--top-p is in (0, 1], not nan"),
        (["--top-k", "-1"], "--top-k is at least 0"),
        (["--min-p", "1"], "--min-p is in [0, 1), not 1"),
        (["--temp", "-1"], "--temp is above 0"),
        (["--temp", "inf"], "--temp is above 0"),
        (["--temp", "nan"], "--temp is above 0"),
        (["--repeat-penalty", "0"], "--repeat-penalty is above 0"),
        (["--seed", "-1"], "seed is a whole number from 0"),
        (["--seed", str(2**70)], "seed is a whole number from 0"),
        (["--stop", ""], "--stop is a text"),
        (["--budget", "0"], "budget is at least"),
        (["--budget", "1e400"], "budget is a whole number of tokens or a fraction in (0, 1), not inf"),
        (["--budget", "nan"], "budget is a whole number of tokens or a fraction in (0, 1), not nan"),
        (["--host-kv-gb", "9999999"], "--host-kv-gb is 1e+07, but this machine's memory is"),
        (["--host-kv-gb", "1e300"], "--host-kv-gb is 1e+300, but"),
        (["--host-kv-gb", "inf"], "--host-kv-gb is a number of gigabytes from 0, not inf"),
        (["--host-kv-gb", "nan"], "--host-kv-gb is a number of gigabytes from 0, not nan"),
        (["--gpu-kv-gb", "-1"], "--gpu-kv-gb is a number of gigabytes from 0, not -1"),
        (["--disk-kv-gb", "1e9"], "--disk-kv-gb is 1e+09, but the file system of"),
        (["--session", "nosuch"], "no session 'nosuch' for this model or any other; saved: none"),
        (["--session", "a/b"], "printable bytes without slashes, not 'a/b'"),
        (["--save", ""], "printable bytes without slashes, not ''"),
        (["--session", "x", "--system-prompt", "y"], "system prompt already"),
        (["--disk-kv-gb", "0", "--save", "x"], "sessions need the disk tier; it is switched off"),
        (["--system-prompt", "caf\udce9"], "the system prompt is not UTF-8 text (character 4)"),
        (["--session", "caf\udce9"], "a session name is not UTF-8 text"),
        (["-f", "caf\udce9.txt"], "caf\\xe9.txt: no such file"),
        (["-f", "/dev/zero"], "/dev/zero is a device"),
        (["-f", "x" * 5000], "File name too long"),
        (["-m", "~nobody-of-this-name/x"], "~nobody-of-this-name"),
        (["--kv-dir", "~nobody-of-this-name/x"], "no home folder for '~nobody-of-this-name/x'"),
        (["--nosuch"], "No such option: --nosuch"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(arguments: list[str], said: str, tmp_path: Path) -> None:
    assert said in one_line(chat(tmp_path / "kv", "-p", "hi", *arguments))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "0"], "a number of tokens from 1, not 0"),
        (["plan", "-m", "x", "--", "-5"], "a number of tokens from 1, not -5"),
        (["plan", "many"], "a whole number, not 'many'"),
        (["plan", "5", "--host-kv-gb", "1e300"], "--host-kv-gb is 1e+300"),
        (["bench", "--steps", "0"], "at least 1 step"),
        (["bench", "--contexts", "1e3"], "--contexts is a comma-separated list of whole numbers"),
        (["bench", "--gpu-memory-cap", "inf"], "--gpu-memory-cap is more than 0, not inf"),
        (["bench", "--disk-gbps", "nan"], "--disk-gbps is more than 0, not nan"),
        (["bench", "--shape", "llama-3.1-8b", "--layers", "0"], "layers is at least 1, not 0"),
        (["bench", "--budget", "nan"], "budget is a whole number of tokens"),
        (["bench", "--host-kv-gb", "nan"], "--host-kv-gb is a number of gigabytes"),
        (["eval", "--suite", "exact", "--seed", "-1"], "seed is a whole number from 0"),
        (["eval", "--suite", "exact", "--seed", str(2**70)], "seed is a whole number from 0"),
        (["eval", "--suite", "fidelity", "--budget", "inf"], "budget is a whole number of tokens"),
        (["eval", "--suite", "fidelity", "--budget", "a"], "budget is a comma-separated list of numbers, not 'a'"),
        (["eval", "--suite", "nosuch"], "suite is one of exact"),
        (["eval", "--suite", "exact", "--ctx", "-1"], "--ctx is at least 512 tokens, not -1"),
        (["calibrate", "x", "--text", "/dev/null", "--tokens", "-5"], "tokens is at least 1"),
        (["calibrate", "x", "--text", "nowhere.txt"], "nowhere.txt: no such file"),
        (["sessions", "gc", "--max-gb", "nan"], "--max-gb is a number of gigabytes from 0, not nan"),
        (["sessions", "gc", "--max-gb", "inf"], "--max-gb is a number of gigabytes from 0, not inf"),
        (["sessions", "show", "caf\udce9"], r"no session 'caf\\xe9'"),
        (["nosuch"], "No such command 'nosuch'"),
    ],
)
def test_other_commands_say_so_too(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert said in one_line(run(*arguments))


@pytest.mark.usefixtures("unloaded")
def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "the prompt is not UTF-8 text (character 4)" in one_line(chat(tmp_path, "-p", "caf\udce9?"))
    assert "stdin is not UTF-8 text (byte 3)" in one_line(chat(tmp_path, stdin=b"caf\xe9?"))
    assert "stdin is not UTF-8 text (byte 3)" in one_line(chat(tmp_path, "-p", "hi", stdin=b"caf\xe9?"))
    assert "stdin is a binary file" in one_line(chat(tmp_path, "-f", "-", "-p", "hi", stdin=b"\0\0"))
    assert "the prompt is empty" in one_line(chat(tmp_path, stdin=""))
    assert "stdin is read as a document" in one_line(chat(tmp_path, "-f", "-", stdin="text"))


@pytest.mark.usefixtures("unloaded")
def test_a_folder_that_is_gone_is_no_place_to_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder was deleted" in one_line(chat(tmp_path / "kv", "-p", "hi"))
    monkeypatch.chdir(tmp_path)


def test_what_a_document_is_called() -> None:
    assert document_name(Path("/tmp/a b.txt")) == "a b.txt"
    assert document_name(Path("/dev/fd/63")) == document_name(Path("/proc/self/fd/11")) == "pipe"
    assert document_name(Path(os.fsdecode(b"caf\xe9.txt"))) == r"caf\xe9.txt"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_only_a_terminal_gets_replies_without_controls(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    assert shown("a\x1b[2J\n") == ("a\u241b[2J\n" if is_terminal else "a\x1b[2J\n")


def tokens(result: Result) -> int:
    assert result.exit_code == 0, result.stderr
    return int(json.loads(result.stdout)["usage"]["prompt_tokens"])


def test_a_log_gets_no_bars_whatever_is_said_of_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    console = make_console(stderr=True)
    with chat_setup.progress_bar(console, "reading"), Bar() as bar:
        bar.start(1)
    chat_setup.say_converting(console, "m.gguf (needs much)")
    assert log.getvalue() == "converting m.gguf (needs much) once; later starts skip this\n"


def test_a_shell_loop_holds_a_conversation(tmp_path: Path) -> None:
    seen = [
        tokens(chat(tmp_path, "-p", "k1 v2 ? k1", "--save", "s", "--json")),
        tokens(chat(tmp_path, "-p", "? k1", "--session", "s", "--save", "s", "--json")),
        tokens(chat(tmp_path, "-p", "? k1", "--session", "s", "--save", "s", "--json")),
    ]
    assert seen == sorted(set(seen))
    assert "no session 't' for this model or any other; saved: s" in one_line(
        chat(tmp_path, "-p", "x", "--session", "t")
    )


def test_flags_of_other_programs(tmp_path: Path) -> None:
    asked = ("-p", "k1 v2 ? k1", "--json")
    first = json.loads(chat(tmp_path, *asked, "-n", "20").stdout)["text"]
    stop = first.split()[1]
    stopped = json.loads(chat(tmp_path, *asked, "-n", "20", "--stop", "nowhere", "--stop", stop).stdout)
    assert stopped["finish_reason"] == "stop"
    assert stop not in stopped["text"]
    other = json.loads(chat(tmp_path, *asked, "-n", "20", "--repeat-penalty", "5").stdout)["text"]
    assert other != first
    for flag in ("--version", "-V"):
        assert re.fullmatch(r"stratakv \S+\n|stratakv \(not installed\)\n", run(flag).stdout)


def test_the_help_names_the_defaults() -> None:
    """They are not the command's own: only what is given is handed on."""
    found, said = GenerationConfig(), run("chat", "--help").stdout
    defaults = {
        "--n-predict": found.max_new_tokens, "--temp": found.temperature if found.do_sample else 0,
        "--top-p": found.top_p, "--top-k": found.top_k, "--min-p": found.min_p,
        "--repeat-penalty": found.repetition_penalty,
    }  # fmt: skip
    for flag, value in defaults.items():
        assert f"[{value:g}]" in " ".join(said[said.index(flag) :].split("--")[1].split()), flag


def test_a_reply_until_there_is_no_room(tmp_path: Path) -> None:
    """The model's window is 4,096 tokens; a cap of the host tier alone makes less room."""
    caps = ("--disk-kv-gb", "0", "--host-kv-gb", "0.0026")
    found = json.loads(chat(tmp_path, "-p", "k1 v2 ? k1", "--json", "-n", "-1", "--max-repeats", "0", *caps).stdout)
    assert found["finish_reason"] in ("length", "eos")
    assert found["usage"]["completion_tokens"] > 3


def test_the_default_store_is_done_without_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    result = run("chat", "-m", RECALL, "-p", "k1 v2 ? k1", "-n", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("v2")
    assert result.stderr.count("\n") == 1
    assert "going on without a disk tier" in result.stderr
    asked_for = run("chat", "-m", RECALL, "-p", "hi", "--kv-dir", tmp_path / "file" / "kv")
    assert "cannot be used" in one_line(asked_for)


def test_caps_are_compared_with_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(machine_caps, "_GROUP_LIMITS", (str(tmp_path / "limit"), str(tmp_path / "none")))
    assert machine_caps.total_memory() == 1000000
    assert "--host-kv-gb is 0.002, but this machine's memory is 0.001 GB" in one_line(
        chat(tmp_path / "kv", "-p", "hi", "--host-kv-gb", "0.002")
    )


class Odd(Exception):
    """One that nobody foresaw."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            Odd("boo\x1b[2J"),
            1,
            "a fault of the program, please report it: Odd: boo\\x1b[2J; STRATAKV_DEBUG=1 shows where",
        ),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(), 141, None),
        (MemoryError(), 2, "not enough memory; lower --host-kv-gb or --gpu-kv-gb"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "not enough memory; lower --host-kv-gb",
        ),
        (OSError(28, "No space left on device", "/x"), 2, "/x: No space left on device"),
        (ValueError("two\nlines [red]"), 2, "two lines [red]"),
    ],
)
def test_every_error_ends_in_a_code_and_a_line(
    error: BaseException, code: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(Runtime, "load", load)
    result = chat(tmp_path, "-p", "hi")
    if said is None:
        assert (result.exit_code, result.stdout, result.stderr) == (code, "", "")
    else:
        assert said in one_line(result, code)
    monkeypatch.setenv("STRATAKV_DEBUG", "1")
    assert ("Traceback" in chat(tmp_path, "-p", "hi").stderr) == (said is not None)


def test_python_names_become_flags_but_nobodys_words_do() -> None:
    assert with_flags("raise host_gb, or allow the disk tier (disk_gb)") == (
        "raise --host-kv-gb, or allow the disk tier (--disk-kv-gb)"
    )
    assert with_flags("top_p is in (0, 1], not 2; use max_new_tokens=5") == (
        "--top-p is in (0, 1], not 2; use --n-predict=5"
    )
    for words in (
        "no session 'my top_k one'; saved: x",
        "top_k.txt: no such file",
        "/data/host_gb/x is empty",
        "a-top_k",
    ):
        assert with_flags(words) == words
    assert with_flags("choose another (path=)") == "choose another (--kv-dir)"
    assert with_flags("top_k, disk_gb", CAPS) == "top_k, --disk-kv-gb"


def test_messages_of_the_library_name_no_flags() -> None:
    """A person who calls it from Python has no flags; the command puts them in. Whole commands may be named."""
    for folder in ("runtime", "storage", "retrieval"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.parent.name == "cli" or path.stem == "fetch":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    is_command = re.search(
                        r"stratakv \w+|pip |sha256|--folder|--verify|--in:|--text FILE|^ ?--", node.value
                    )
                    is_drawing = "-->" in node.value
                    found = re.search(r"--[a-z]{2}", node.value)
                    assert is_command or is_drawing or not found, (path.name, node.value)


@pytest.mark.parametrize("folder", ["storage", "kernels"])
def test_what_lies_below_knows_no_option_of_a_command(folder: str) -> None:
    """Its errors say what is full, locked or damaged, and name settings as Python does; `one_line` has their flags."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        without_arrows = re.sub(r"--[^\n>]*-->", "", path.read_text())
        assert not re.search(r"(?<![\w-])--[a-z]", without_arrows), path
        assert not re.search(r"\bcli\b|typer|argparse", without_arrows), path


def test_streams_take_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli._prepare_streams()
    print("café \ud800")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf? ?\n"


def test_closed_streams_are_no_place_for_the_next_file() -> None:
    """Without a table of files from 0 to 2 the store's own file would get standard output's number."""
    code = "import os; from stratakv.runtime.cli.app import _prepare_streams as p; p(); print(os.open('/dev/null', 0))"
    closing = 'exec 0<&- 1>&- 2>&-; "$@"; echo $? >&3'
    done = subprocess.run(
        ["sh", "-c", f"exec 3>&1; {closing}", "sh", *COMMAND, "--version"], capture_output=True, text=True
    )
    assert done.stdout == "0\n"
    done = subprocess.run(
        ["sh", "-c", 'exec 0<&-; "$@"', "sh", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert int(done.stdout) > 2


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    """As `| head` does: no line, no traceback when the interpreter ends, and the code of a closed pipe."""
    asked = ["chat", "-m", str(RECALL), "--kv-dir", str(tmp_path), "-n", "2000", "-p", "k1 v2 ? k1"]
    with subprocess.Popen(
        [*COMMAND, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(3).startswith(b"v2")
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 141
