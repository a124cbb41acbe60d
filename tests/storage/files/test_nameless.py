"""A file is there whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stratakv.storage.files.nameless import name_file, nameless_file, remove_unfinished


@pytest.fixture(params=["nameless", "hidden"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system that has nameless files, and one on another."""
    if request.param == "hidden":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has none")
    return tmp_path


def test_it_takes_the_place_of_another_in_one_step(folder: Path) -> None:
    target = folder / "a"
    target.write_bytes(b"before")
    with nameless_file(str(folder)) as file:
        file.write(b"after")
        file.flush()
        assert target.read_bytes() == b"before"
        assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["a"]
        name_file(file, str(target))
        assert target.read_bytes() == b"after"
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_without_a_name_it_is_gone(folder: Path) -> None:
    with nameless_file(str(folder)) as file:
        file.write(b"half of it")
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in ("a", "a.new", ".tmp123.new"):
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
