"""What an earlier version made of a GGUF file is made anew, and its store is used again only if it was right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.model import conversion
from stratakv.runtime.model.conversion import made_of
from stratakv.runtime.model.gguf import rope
from stratakv.runtime.model.identity import gguf_digest
from stratakv.runtime.model.locate import locate, present
from stratakv.runtime.sessions.saved import describe, store_folders


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_tiny_gguf(tmp_path / "m-1.gguf")


def load(model: Path, store: Path) -> Runtime:
    kv = KVConfig(path=store, host_gb=0.05, disk_gb=0.05)
    return Runtime.load(model, dtype="float32", weights="own", kv=kv)


def save(model: Path, store: Path) -> None:
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text("A short text to keep. " * 4)
        chat.save("s")


def by_the_first_version(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Conversions are made as the first version did, whose folders had no version in their names."""
    monkeypatch.setattr(conversion, "VERSION", 1)
    monkeypatch.setattr(
        "stratakv.runtime.model.locate.folder_name", lambda called, digest, dtype: f"{called}-{digest[:16]}-{dtype}"
    )
    for name, value in changes.items():
        monkeypatch.setattr(rope, name, value)


def test_a_store_from_before_is_used_if_nothing_was_wrong(model: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as before:
        by_the_first_version(before)
        save(model, tmp_path / "kv")
        (old,) = present(str(model))
    assert made_of(old.name) == (gguf_digest(old), "float32", 1)
    with load(model, tmp_path / "kv") as runtime:
        assert runtime.sessions() == ["s"]
    (new,) = present(str(model))
    assert made_of(new.name) == (gguf_digest(old), "float32", 2)
    assert not old.exists()
    assert len(store_folders(tmp_path / "kv")) == 1


def test_a_store_with_wrong_positions_is_left_behind(model: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as before:
        by_the_first_version(before, _theta=lambda said, name: 2 * said.number(name, 1e4))
        save(model, tmp_path / "kv")
    (left,) = store_folders(tmp_path / "kv")
    with load(model, tmp_path / "kv") as runtime:
        assert runtime.sessions() == []
    assert describe(left)["former_names"] == [str(model)]
    assert len(store_folders(tmp_path / "kv")) == 2


def test_what_a_later_version_made_stays(model: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as later:
        later.setattr(conversion, "VERSION", 3)
        made = locate(str(model), "float32", on_convert=lambda _: None)
    assert made_of(made.name) == (gguf_digest(made), "float32", 3)
    own = locate(str(model), "float32", on_convert=lambda _: None)
    other = locate(str(model), "bfloat16", on_convert=lambda _: None)
    assert present(str(model)) == sorted([made, own, other])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_somebody_removed_a_part_of_is_made_anew(name: str, model: Path) -> None:
    made = locate(str(model), "float32", on_convert=lambda _: None)
    whole = (made / name).read_bytes()
    (made / name).unlink()
    told: list[str] = []
    assert locate(str(model), "float32", on_convert=told.append) == made
    assert (made / name).read_bytes() == whole
    assert len(told) == 1
