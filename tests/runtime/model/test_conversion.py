"""A GGUF file is converted by itself, whole or not at all: nothing that lies in its folder has a say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from children import Say, child
from faults import no_file_may_grow
from tiny_gguf import write_tiny_gguf
from tiny_models import save_tiny_model

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model import conversion
from stratakv.runtime.model.locate import locate


def converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Name -> content of what the model in `folder` is converted to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    target = locate(str(folder / "m.gguf"), "float32", on_convert=lambda name: None)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_nothing_beside_a_gguf_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, beset = tmp_path / "alone", tmp_path / "beset"
    alone.mkdir()
    write_tiny_gguf(alone / "m.gguf")
    save_tiny_model(beset)
    write_tiny_gguf(beset / "m.gguf")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (beset / name).write_text(json.dumps({"chat_template": "{{ evil }}", "pad_token": "evil"}))
    (beset / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (beset / "generation_config.json").write_text(json.dumps({"eos_token_id": 77, "temperature": 9.0}))
    (beset / "added_tokens.json").write_text(json.dumps({"evil": 3}))
    (beset / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(alone)}))
    (beset / "chat_template.jinja").write_text("{{ evil }}")
    assert converted(beset, monkeypatch) == converted(alone, monkeypatch)


def test_what_it_needs_and_what_is_free_is_told_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing else: no bars, which fill a log."""
    told: list[str] = []
    made = convert_in(tmp_path, monkeypatch, told.append)
    needed = re.fullmatch(
        rf"m.gguf \(needs ([\d.e-]+) GB in {tmp_path}/cache/stratakv/models, .* GB are free\)", told[0]
    )
    assert needed is not None
    assert sum(path.stat().st_size for path in made.iterdir()) <= float(needed[1]) * 1e9 * 1.01
    assert capfd.readouterr() == ("", "")
    convert_in(tmp_path, monkeypatch, told.append)
    assert len(told) == 1


def test_it_is_refused_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(ModelFileError, match=r"m.gguf: no room to convert it: needs .* GB in .*, 1e-06 GB are free;"):
        convert_in(tmp_path, monkeypatch, lambda told: pytest.fail("it began"))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("size", [10, 2000, 40000], ids=["first file", "configuration", "weights"])
def test_a_disk_that_fills_up_meanwhile_is_told_in_one_line(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")
    limits: list[AbstractContextManager[None]] = []

    def fill(told: str) -> None:
        limits.append(no_file_may_grow(size))
        limits[0].__enter__()

    try:
        with pytest.raises(ModelFileError, match=r"could not be converted \(.*File too large.*\): needs .* GB in"):
            convert_in(tmp_path, monkeypatch, fill)
    finally:
        limits[0].__exit__(None, None, None)
    assert leftovers(tmp_path) == []


@pytest.mark.forks
def test_what_a_killed_one_left_the_next_removes_and_a_living_ones_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "m.gguf")

    def begin(say: Say, wait: Callable[[], None]) -> None:
        def told(_: str) -> None:
            say(leftovers(tmp_path))
            wait()

        convert_in(tmp_path, monkeypatch, told)

    with child(begin) as living:
        (theirs,) = living.hear()
        with child(begin) as killed:
            assert len(killed.hear()) == 2
            killed.kill()
        assert len(leftovers(tmp_path)) == 2
        made = convert_in(tmp_path, monkeypatch, lambda _: None)
        assert leftovers(tmp_path) == [theirs]
        before = {path.name: path.read_bytes() for path in made.iterdir()}
        living.go()
        assert living.join() == 0, "it finds that another was first"
    assert leftovers(tmp_path) == []
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def convert_in(folder: Path, monkeypatch: pytest.MonkeyPatch, on_convert: Callable[[str], None]) -> Path:
    """Of `folder / "m.gguf"`, in a cache of its own there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    if not (folder / "m.gguf").exists():
        write_tiny_gguf(folder / "m.gguf")
    return locate(str(folder / "m.gguf"), "float32", on_convert=on_convert)


def leftovers(folder: Path) -> list[str]:
    """What is there for the time being."""
    return sorted(path.name for path in (folder / "cache").rglob("*.tmp"))
