"""Names that are bytes, as text and as paths for libraries that take text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stratakv.storage.files.file_names import as_text, readable_path

NO_TEXT = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(("name", "text"), [("café", "café"), (NO_TEXT, r"caf\xe9"), (Path("a/b"), "a/b")])
def test_a_name_as_text_can_be_encoded(name: str | Path, text: str) -> None:
    assert as_text(name) == text
    as_text(name).encode()


def test_halves_that_stand_for_no_byte() -> None:
    as_text("a\ud800b").encode()


def test_two_names_stay_two() -> None:
    assert as_text(NO_TEXT) != as_text(os.fsdecode(b"caf\xe8"))


def test_a_path_that_is_text_is_itself(tmp_path: Path) -> None:
    with readable_path(tmp_path) as path:
        assert path == tmp_path


def test_another_is_there_under_a_link_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / NO_TEXT
    folder.mkdir()
    (folder / "file").write_text("hello")
    with readable_path(folder) as path:
        str(path).encode()
        assert (path / "file").read_text() == "hello"
    assert not path.exists()
    assert (folder / "file").exists()
