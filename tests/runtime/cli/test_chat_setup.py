"""From options to a conversation: what is wrong is said before a model is loaded, and a store that nobody asked for is
done without where it cannot be used."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stratakv.runtime import KVConfig, SessionError
from stratakv.runtime.api.progress import Progress
from stratakv.runtime.chat.documents import Document
from stratakv.runtime.cli import chat_setup
from stratakv.runtime.cli.chat_setup import ChatOptions, check_session, prepare, progress_bar, settle_store, store_root


def options(**changes: Any) -> ChatOptions:
    given = {"kv": KVConfig(disk_gb=0), "files": [], "session": None, "system": None, "generation": {}, **changes}
    return ChatOptions("none", "auto", "auto", **given)


def test_documents_come_in_the_order_given_and_piped_text_last(tmp_path: Path) -> None:
    paths = [tmp_path / "two.txt", tmp_path / "one.txt"]
    for path in paths:
        path.write_text(f"This is {path.stem}.")
    assert prepare(options(files=paths, piped="piped\n")) == [
        Document("two.txt", "This is two."), Document("one.txt", "This is one."), Document("stdin", "piped\n"),
    ]  # fmt: skip
    assert prepare(options(piped=" \n")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"session": "a", "system": "Be brief."}, "a resumed session has its system prompt already"),
        ({"generation": {"top_k": -1}}, "top_k is at least 0"),
        ({"system": "caf\udce9"}, r"the system prompt is not UTF-8 text \(character 4\)"),
        ({"session": "\ud800"}, r"a session name is not UTF-8 text \(character 1\)"),
        ({"save": "\ud800"}, r"a session name is not UTF-8 text \(character 1\)"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepare(options(**changes))


def test_a_locale_without_utf8_gives_text_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert chat_setup.check_text("the prompt", "caf\udcc3\udca9") == "caf\u00e9"


def test_a_folder_that_cannot_be_written_is_found_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write everywhere, as root may, cannot be kept from it by modes."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert chat_setup._why_unusable(tmp_path / "a" / "b") == f"{tmp_path} cannot be written"
    assert chat_setup._why_unusable(tmp_path.parent) is None
    assert chat_setup._why_unusable(Path("~/.cache")) == "there is no such home folder"


def test_a_store_that_was_asked_for_is_not_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    with pytest.raises(
        ValueError, match=r"file/kv cannot be used .*file is not a folder.*; choose another with --kv-dir"
    ):
        settle_store(KVConfig(path=tmp_path / "file" / "kv"), told.append)
    assert told == []


def test_the_default_store_is_done_without_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    told: list[str] = []
    found = settle_store(KVConfig(budget=512), told.append)
    assert (found.disk_gb, found.budget) == (0, 512)
    ((line,), root) = (told, store_root(KVConfig()))
    assert line.startswith(
        f"the store folder {root} cannot be used ({tmp_path}/file is not a folder): going on without"
    )
    with pytest.raises(ValueError, match="cannot be used"):  # who says how large it may be wants one
        settle_store(KVConfig(disk_gb=1), told.append)


def test_a_store_that_can_be_used_or_is_not_used_stays(tmp_path: Path) -> None:
    for kv in (KVConfig(path=tmp_path / "a" / "b"), KVConfig(path="/dev/null/kv", disk_gb=0)):
        assert settle_store(kv, pytest.fail) is kv
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_is_nowhere_is_said_at_once(tmp_path: Path) -> None:
    kv = KVConfig(path=tmp_path / "kv")
    with pytest.raises(SessionError, match="no session 'door' for this model or any other; saved: none"):
        check_session(options(kv=kv, session="door"))
    check_session(options(kv=kv, save="door"))  # it need not be there
    for name in ("session", "save"):
        with pytest.raises(SessionError, match="sessions need the disk tier; it is switched off"):
            check_session(options(**{name: "door"}))
        with pytest.raises(SessionError, match="printable bytes without slashes, not 'a/b'"):
            check_session(options(**{"kv": kv, name: "a/b"}))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_shown_how_far_it_is(is_terminal: bool) -> None:
    screen = io.StringIO()
    with progress_bar(Console(file=screen, force_terminal=is_terminal, width=100), "reading [b]x[/b]") as step:
        step(Progress(total=40, cached=10, processed=20, elapsed_s=1.0))
    shown = screen.getvalue()
    assert ("reading [b]x[/b]" in shown, "20/40 tokens" in shown) == (is_terminal, is_terminal)
    assert is_terminal or not shown.strip()
