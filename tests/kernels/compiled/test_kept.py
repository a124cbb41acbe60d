"""The folder of compiled code is another one for every state of what the code depends on."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from stratakv.kernels.compiled import kept
from stratakv.kernels.compiled.kept import Cache


def test_the_key_is_of_all_files_and_of_numba(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {Cache.key()}
    monkeypatch.setattr(kept, "version", lambda name: "another")
    keys.add(Cache.key())
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    for text in ("", "x = 1", "x = 2"):
        (tmp_path / "other.py").write_text(text)
        keys.add(Cache.key())
    assert len(keys) == 5


def test_another_process_finds_the_key_without_what_compiles() -> None:
    probe = (
        "import sys; from stratakv.kernels.compiled.kept import Cache\n"
        "print(Cache.key(), 'numba' in sys.modules, Cache.folder)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [Cache.key(), "False", "None"], "and nothing is kept unless somebody says where"


def test_packages_that_say_no_version_have_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of no version that they could say."""

    def says_none(name: str) -> str:
        raise PackageNotFoundError(name)

    named = Cache.key()
    monkeypatch.setattr(kept, "version", says_none)
    assert Cache.key() not in ("", named)
