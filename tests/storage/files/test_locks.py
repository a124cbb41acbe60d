"""Whoever makes a thing owns it before anybody can take it for a dead owner's."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from stratakv.storage.files.locks import is_locked, new_locked


def make(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def test_a_new_one_is_locked_until_its_descriptor_closes(tmp_path: Path) -> None:
    path, descriptor = new_locked(lambda: tmp_path / "a", make)
    assert path == tmp_path / "a"
    assert is_locked(path)
    os.close(descriptor)
    assert not is_locked(path)


def test_what_is_not_there_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "a")


def test_one_that_somebody_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    names = iter("ab")
    made: list[int] = []

    def removed_once(path: Path) -> int:
        made.append(make(path))
        if len(made) == 1:
            path.rmdir()  # a cleaner took it for a dead owner's
        return made[-1]

    path, descriptor = new_locked(lambda: tmp_path / next(names), removed_once)
    assert (path.name, descriptor) == ("b", made[-1])
    assert is_locked(path)
    os.close(descriptor)


def test_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="no locks"):
        new_locked(lambda: tmp_path / "a", make)
    _, descriptor = new_locked(lambda: tmp_path / "b", make, needs_lock=False)
    os.close(descriptor)
