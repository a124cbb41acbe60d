"""Names that sessions may have, as text and as keys."""

from __future__ import annotations

import pytest

from stratakv.storage.disk.session_name import MAX_BYTES, is_session_name, session_name


@pytest.mark.parametrize("name", ["a", "my book", "Überblick", "..", "x" * MAX_BYTES, "é" * (MAX_BYTES // 2)])
def test_a_name_is_its_key(name: str) -> None:
    assert is_session_name(name)
    assert session_name(name.encode()) == name


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a\nb", "a\x1b[2J", "x" * (MAX_BYTES + 1), "é" * 101])
def test_others_are_none(name: str) -> None:
    assert not is_session_name(name)
    assert session_name(name.encode()) is None


def test_a_key_that_is_no_text_is_no_name() -> None:
    assert session_name(b"\xff\xfe") is None
