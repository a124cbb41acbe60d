"""Where compiled code is kept, and who decodes in it."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import pytest

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.process import compiled


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")


@pytest.mark.parametrize(("value", "is_on"), [(None, True), ("0", False), ("1", True)])
def test_it_can_be_switched_off(value: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(compiled.SWITCH, value)
    assert compiled.is_available() is is_on


def test_without_numba_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "1")
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert not compiled.is_available()


def test_with_a_numba_that_cannot_be_imported_pytorch_decodes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "_imported", cache(compiled._imported.__wrapped__))
    monkeypatch.setitem(sys.modules, "stratakv.kernels.compiled.operation", None)  # whose import fails then
    with Runtime.load(tiny_llama, device="cpu", kv=KVConfig(path=tmp_path, host_gb=0.05, disk_gb=0.05)) as runtime:
        assert runtime.engine.compiled is None
        runtime.chat().send("k1", max_new_tokens=2, ignore_eos=True)
    assert "numba cannot be used here" in caplog.text


def test_code_is_kept_in_a_private_folder_of_its_version(tmp_path: Path) -> None:
    kept = compiled._kept_in(tmp_path / "cache", "abc")
    assert kept == tmp_path / "cache" / "compiled" / "abc"
    assert (tmp_path / "cache" / "compiled").stat().st_mode & 0o077 == 0


def test_where_nothing_can_be_written_it_is_kept_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "file").write_text("no folder")
    kept = compiled._kept_in(tmp_path / "file" / "cache", "abc")
    assert kept is not None
    assert kept.parent.parent == tmp_path


def test_where_there_is_no_place_at_all_it_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert compiled._kept_in(tmp_path / "file" / "cache", "abc") is None


def test_code_of_earlier_versions_goes_when_nobody_asked_for_it_for_long(tmp_path: Path) -> None:
    old, new = (compiled._kept_in(tmp_path, key) for key in ("old", "new"))
    assert old is not None
    assert new is not None
    os.utime(old, (0, 0))
    compiled._kept_in(tmp_path, "newest")
    assert not old.exists()
    assert new.exists()
