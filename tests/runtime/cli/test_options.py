"""Options that several commands share: numbers and paths as people type them, and an error is the option's own line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from stratakv.runtime.api.typed_numbers import whole_number
from stratakv.runtime.cli.options import at_home, kv_config, path, reading, real, whole
from stratakv.runtime.engine import machine_caps

app = typer.Typer()


@app.command()
def command(
    count: Annotated[int | None, whole("--count", help="")] = None,
    share: Annotated[float | None, real("--share", help="")] = None,
    folder: Annotated[Path | None, path("--folder", help="")] = None,
) -> None:
    print(repr(count), repr(share), folder)


def said(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_numbers_and_paths_are_read_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert said().stdout == "None None None\n"
    assert said("--count", "1e3", "--share", "0.25").stdout == "1000 0.25 None\n"
    assert said("--folder", "~/kv").stdout == f"None None {tmp_path}/kv\n"


@pytest.mark.parametrize("text", ["inf", "nan"])
def test_whoever_receives_a_number_says_what_it_may_be(text: str) -> None:
    assert said("--share", text).stdout == f"None {text} None\n"


@pytest.mark.parametrize(
    ("option", "text", "line"),
    [
        ("--count", "1.5", "a whole number, not '1.5'"),
        ("--share", "half", "a number, not 'half'"),
        ("--folder", "~nobody-of-this-name/x", "there is no home folder for '~nobody-of-this-name/x'"),
    ],
)
def test_what_means_nothing_is_refused_by_the_options_name(option: str, text: str, line: str) -> None:
    result = said(option, text)
    words = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for '{option}': {line}" in words


def test_a_default_is_not_read_as_text() -> None:
    read = reading(whole_number)
    assert (read("5"), read(5), read(None)) == (5, 5, None)


def test_a_file_whose_name_begins_with_a_tilde_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-of-this-name").touch()
    assert at_home("~nobody-of-this-name") == "~nobody-of-this-name"


@pytest.mark.parametrize(("typed", "budget"), [(512.0, 512), (2048, 2048), (0.25, 0.25)])
def test_a_budget_is_a_number_of_tokens_or_a_share(typed: float, budget: float, tmp_path: Path) -> None:
    found = kv_config(budget=typed, path=tmp_path, disk_gb=0.0).budget
    assert (found, type(found)) == (budget, type(budget))


@pytest.mark.parametrize("typed", [math.inf, math.nan, 1.5])
def test_another_budget_is_refused(typed: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"a fraction in \\(0, 1\\), not {typed}"):
        kv_config(budget=typed, path=tmp_path)


def test_caps_beyond_the_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_caps, "total_memory", lambda: 8 * 10**9)
    assert kv_config(budget=512, path=tmp_path, host_gb=8.0).host_gb == 8
    with pytest.raises(ValueError, match="host_gb is 9, but this machine's memory is 8 GB"):
        kv_config(budget=512, path=tmp_path, host_gb=9.0)
