"""KV is stored only while the files that a model is mapped from are what they were when it was named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model import digests
from stratakv.runtime.model.conversion import folder_name
from stratakv.runtime.model.identity import file_tensors
from stratakv.runtime.model.locate import cache_dir, files_digest
from stratakv.runtime.model.mapped import MappedWeights
from stratakv.storage import DiskTier, StorageFullError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a model's identity is made from; nothing else of one is looked at."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    save_file({"a": torch.arange(8.0)}, made / "model.safetensors")
    return made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    with_room = DiskTier(tmp_path / "store", 1 << 24, bytes(16), {})
    yield with_room
    with_room.close()


def write_last(path: Path, byte: bytes) -> None:
    """A second later: a clock that is coarse could not tell otherwise."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(byte)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def in_use(folder: Path) -> MappedWeights:
    mapped = MappedWeights(folder)
    mapped.guard(None)
    return mapped


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_changed_while_it_was_read_is_refused(name: str, folder: Path) -> None:
    mapped = MappedWeights(folder)
    write_last(folder / name, b"\7")
    with pytest.raises(ModelFileError, match=f"{folder}: the model was replaced while it was read; load it again"):
        mapped.guard(None)


def test_a_store_takes_nothing_from_a_file_that_was_written_to(folder: Path, disk: DiskTier) -> None:
    MappedWeights(folder).guard(disk)
    disk.put_session("before", b"said")
    write_last(folder / "model.safetensors", b"\7")
    with pytest.raises(StorageFullError, match=r"model\.safetensors was written to while the model was in use"):
        disk.put_session("after", b"said")
    assert disk.session_names() == ["before"]


def test_a_file_in_its_place_or_none_changes_nothing(folder: Path) -> None:
    """What was mapped is still there."""
    mapped, path = in_use(folder), folder / "model.safetensors"
    save_file({"a": torch.zeros(8)}, folder / "other")
    os.replace(folder / "other", path)
    mapped.require_unchanged()
    path.unlink()
    mapped.require_unchanged()


def test_the_same_numbers_written_again_are_the_same_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If its digest is known: it is not read only to be compared later."""
    path = folder / "model.safetensors"
    last = path.read_bytes()[-1:]
    unknown = in_use(folder)
    monkeypatch.setattr(digests, "time_ns", lambda: time.time_ns() + 10**10)  # the files are settled
    file_tensors(path)
    known = in_use(folder)
    write_last(path, last)
    known.require_unchanged()
    with pytest.raises(StorageFullError):
        unknown.require_unchanged()
    write_last(path, b"\7")
    with pytest.raises(StorageFullError):
        known.require_unchanged()


@pytest.mark.parametrize("is_of_it", [True, False])
def test_a_directory_goes_with_the_gguf_file_that_it_was_made_of(is_of_it: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    digest = files_digest([path]) if is_of_it else "0" * 32
    directory = cache_dir() / "models" / folder_name("m", digest, "file")
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    mapped = MappedWeights(directory, [path])
    if not is_of_it:
        with pytest.raises(ModelFileError, match="was replaced while it was read"):
            mapped.guard(None)
        return
    mapped.guard(None)
    write_last(path, b"\7")
    with pytest.raises(StorageFullError, match=r"m\.gguf was written to"):
        mapped.require_unchanged()
