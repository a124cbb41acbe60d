"""What people wrote is theirs alone."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from stratakv.storage.files.private import private_file, private_folder, reserved_file


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_new_folders_are_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


def test_open_ones_are_closed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, file = tmp_path / "a", tmp_path / "a" / "data"
    folder.mkdir(mode=0o755)
    file.touch()
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        private_folder(folder)
        assert (mode(folder), mode(file)) == (0o700, 0o600)
        assert f"{folder} was open to other users; made private: {folder}, {file}" in caplog.text
        caplog.clear()
        private_folder(folder)
    assert caplog.text == ""


def test_what_is_no_folder_or_another_users_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        private_folder(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="run as its owner"):
        private_folder(tmp_path)


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    private_file(path, "one")
    first = path.stat().st_ino
    private_file(path, "one")
    assert (path.stat().st_ino, mode(path)) == (first, 0o600)
    private_file(path, "two")
    assert path.read_text() == "two"


def test_bytes_are_reserved_and_none_lost(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"data")
    reserved_file(str(path), 10_000)
    assert path.read_bytes() == b"data" + bytes(9996)
    reserved_file(str(path), 10)
    assert path.stat().st_size == 10_000


def test_a_links_target_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="a"):
        reserved_file(str(tmp_path / "a"), 10)
    assert (tmp_path / "theirs").stat().st_size == 0
