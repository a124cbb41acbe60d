"""Session names that a person or a program may try: none leaves the store, all are refused by one error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import FINGERPRINT, by_hand, plant
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, Runtime, SessionError
from stratakv.runtime.cli.app import app
from stratakv.runtime.sessions.session import check_name
from stratakv.storage import DiskTier

HOSTILE = {
    "empty": "", "parent": "../x", "absolute": "/etc/passwd", "backslash": "..\\x", "300 bytes": "a" * 300,
    "201 bytes in 67 characters": "\u20ac" * 67, "NUL": "a\0b", "newline": "a\nb", "surrogate": "a\ud800b",
    "right-to-left override": "a\u202eb", "isolate": "\u2066x", "zero width": "a\u200bb", "escape": "\x1b[2J",
    "private use": "\ue000", "no-break space": "a\u00a0b",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(SessionError, match="1 to 200 printable bytes") as caught:
        check_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x", "мой разговор 📖", "a" * 200, "\u20ac" * 66, "..", "-rf", "a:b?*"])
def test_an_honest_name_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_neither_saving_nor_loading_takes_one(tmp_path: Path, tiny_llama: Path) -> None:
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.01, disk_gb=0.05)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text("A short text to keep. " * 10)
        for name in HOSTILE.values():
            with pytest.raises(SessionError, match="printable bytes"):
                chat.save(name)
            with pytest.raises(SessionError, match="printable bytes"):
                runtime.chat(session=name)
        assert runtime.sessions() == []
    assert {path.name for path in tmp_path.iterdir()} == {"kv"}


KEYS = [b"../../x", b"/etc/passwd", b"..\\x", b"a\0b", b"a\nb", b"\x1b[2J", b"\xff\xfe", b"a" * 201]


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_a_key_in_a_store_from_elsewhere_names_no_session(tmp_path: Path, key: bytes) -> None:
    """Neither listed nor removed by that name; `gc` removes it, and nothing outside the folder is touched."""
    store = tmp_path / "kv"
    folder = store / f"model_{FINGERPRINT.hex()}"
    (tmp_path / "x").write_text("mine")
    DiskTier(folder, 1 << 24, FINGERPRINT, {}).close()
    plant(folder, b"sessions", key, by_hand())
    run = CliRunner()
    where = ["--kv-dir", str(store)]
    assert "no sessions" in run.invoke(app, ["sessions", "list", *where]).output
    removed = run.invoke(app, ["sessions", "rm", key.decode(errors="replace"), *where])
    assert removed.exit_code == 2
    assert run.invoke(app, ["sessions", "verify", *where]).exit_code == 1
    assert "1 records removed" in run.invoke(app, ["sessions", "gc", *where]).output
    assert run.invoke(app, ["sessions", "verify", *where]).exit_code == 0
    assert (tmp_path / "x").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kv", "x"]
