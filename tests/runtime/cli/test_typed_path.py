"""The file that somebody means, however it was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.runtime.cli.typed_path import path_of, unquoted


@pytest.mark.parametrize(
    "typed",
    ["a b.txt", " a b.txt ", '"a b.txt"', "'a b.txt'", r"a\ b.txt", "{folder}/a b.txt", "file://{url}/a%20b.txt"],
)
def test_ways_to_write_a_name(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.txt").touch()
    found = path_of(typed.format(folder=tmp_path, url=str(tmp_path).replace(" ", "%20")))
    assert found.resolve() == (tmp_path / "a b.txt").resolve()


def test_a_file_called_as_typed_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "'a'"):
        (tmp_path / name).touch()
    assert path_of("'a'") == Path("'a'")
    assert path_of('"a"') == Path("a")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/a.txt") == tmp_path / "a.txt"


def test_a_file_that_is_not_there_is_the_likeliest_reading() -> None:
    assert path_of('"no such file"') == Path("no such file")
    assert path_of("it's \"open") == Path("it's \"open")


@pytest.mark.parametrize(("typed", "says"), [("", "give a file name"), ("a\0b", "no such file")])
def test_what_names_no_file(typed: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        path_of(typed)


@pytest.mark.parametrize(
    ("typed", "name"), [('"a b"', "a b"), ("'a'", "a"), ("'a\"", "'a\""), ("''", "''"), ("a", "a")]
)
def test_quotes_around_a_name(typed: str, name: str) -> None:
    assert unquoted(typed) == name
