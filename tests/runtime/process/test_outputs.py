"""Where results go is tried before the work, and what was found is never lost to a file that cannot be written."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from faults import as_nobody, no_file_may_grow
from typer.testing import CliRunner

from stratakv.runtime.cli.app import app
from stratakv.runtime.evaluation.calibrate import calibrate
from stratakv.runtime.evaluation.progress import Bar
from stratakv.runtime.process.outputs import check_outputs, deliver, output, write_text

ROWS = {"rows": [], "passed": None, "suite": "exact", "checks": []}
COMMANDS = {
    "bench": ("stratakv.runtime.bench.run.run_bench", ["bench", "--shape", "tiny"]),
    "eval": ("stratakv.runtime.evaluation.run.evaluate", ["eval", "--suite", "exact", "--json"]),
}


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in (
        (tmp_path / "no" / "x.json", "its folder does not exist"),
        (tmp_path / "file" / "x", "its folder does not exist"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ValueError, match=why):
            check_outputs(None, path)
    with no_file_may_grow(100), pytest.raises(ValueError, match=r"x.json: cannot be written: File too large"):
        check_outputs(tmp_path / "x.json")
    with pytest.raises(ValueError, match="two results cannot go to one file"):
        check_outputs(tmp_path / "x.json", tmp_path / ".." / tmp_path.name / "x.json")
    check_outputs(tmp_path / "x.json", tmp_path / "x.png", Path("/dev/null"), Path("/dev/null"))
    assert os.listdir(tmp_path) == ["file"], "trying leaves nothing"


def test_a_closed_folder_or_file_is_refused_and_an_open_file_in_a_closed_folder_taken() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, mode in (("open", 0o666), ("closed", 0o444)):
            (folder / file).write_text("before")
            (folder / file).chmod(mode)
        folder.chmod(0o555)
        with as_nobody():
            for file in ("new", "closed"):
                with pytest.raises(ValueError, match=f"{file}: cannot be written: Permission denied"):
                    check_outputs(folder / file)
            check_outputs(folder / "open")
            write_text(folder / "open", "after")
        assert (folder / "open").read_text() == "after"
        folder.chmod(0o755)


def test_links_and_streams_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    write_text(tmp_path / "link", "found")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "found"
    write_text(Path("/dev/null"), "found")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "found")
    assert os.read(reader, 10) == b"found"
    os.close(reader)


def test_a_result_is_for_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    write_text(tmp_path / "x.json", "found")
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o644


def test_everything_is_delivered_whatever_fails() -> None:
    done: list[int] = []

    def fail(number: int) -> NoReturn:
        done.append(number)
        raise OSError(number, "no")

    with pytest.raises(OSError, match="Errno 1"):
        deliver([lambda: fail(1), lambda: done.append(2), lambda: fail(3), lambda: done.append(4)])
    assert done == [1, 2, 3, 4]


def test_a_result_that_is_half_written_does_not_take_the_last_ones_place(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("before")
    with pytest.raises(ZeroDivisionError), output(tmp_path / "x.json") as file:
        file.write(b"%d" % (1 // 0))
    assert (tmp_path / "x.json").read_text() == "before"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_json_is_printed_whatever_becomes_of_the_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()

    def work(*args: Any, **kwargs: Any) -> dict[str, Any]:
        folder.rmdir()
        return ROWS

    place, arguments = COMMANDS[command]
    monkeypatch.setattr(place, work)
    ran = CliRunner().invoke(app, [*arguments, "--out", str(folder / "x.json")])
    assert json.loads(ran.stdout) == ROWS
    assert ran.stderr.startswith("stratakv: ")
    assert "No such file or directory" in ran.stderr
    assert ran.exit_code == 2


def test_a_table_is_followed_by_the_json_that_has_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    folder.mkdir()

    def work(*args: Any, **kwargs: Any) -> dict[str, Any]:
        folder.rmdir()
        return ROWS

    monkeypatch.setattr("stratakv.runtime.evaluation.run.evaluate", work)
    monkeypatch.setattr("stratakv.runtime.evaluation.report.show", lambda result: print("a table"))
    ran = CliRunner().invoke(app, ["eval", "--suite", "exact", "--out", str(folder / "x.json")])
    assert ran.stdout.startswith("a table\n")
    assert json.loads(ran.stdout.removeprefix("a table\n")) == ROWS
    assert ran.exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_file_is_written_though_nobody_reads_the_output(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> NoReturn:
            raise BrokenPipeError

    place, arguments = COMMANDS[command]
    monkeypatch.setattr(place, lambda *args, **kwargs: monkeypatch.setattr(sys, "stdout", Gone()) or ROWS)
    ran = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text()) == ROWS
    assert ran.exit_code == 141


@pytest.mark.parametrize(
    "arguments", [["bench"], ["eval", "--suite", "exact"], ["calibrate", "smollm2", "--text", "x"]]
)
def test_a_place_that_cannot_be_written_loads_no_model(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail("the model was loaded")

    for place in ("bench.run.Subject.load", "chat.runtime.Runtime.load", "model.model.Model.load"):
        monkeypatch.setattr(f"stratakv.runtime.{place}", load)
    ran = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == f"stratakv: {tmp_path}: cannot be written: it is a folder\n"


def test_where_a_profile_goes_by_default_is_tried_before_the_model_is_loaded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("stratakv.runtime.model.model.Model.load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "text").write_text("words")
    with no_file_may_grow(1000), pytest.raises(ValueError, match="cannot be written: File too large"), Bar() as bar:
        calibrate(str(tiny_llama), [tmp_path / "text"], codewords=1, tokens=8, ticker=bar)
