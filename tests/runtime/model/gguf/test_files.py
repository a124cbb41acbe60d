"""GGUF files as they are published: split, in a folder, linked, named in any case."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from gguf_models import random_model, write_gguf
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, ModelFileError, Runtime
from stratakv.runtime.cli.app import app
from stratakv.runtime.model.gguf.files import gguf_files, gguf_in, title
from stratakv.runtime.model.identity import model_key
from stratakv.runtime.model.locate import gguf_of, locate


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in one file, and a folder `split` with it in three parts."""
    folder, model = tmp_path_factory.mktemp("published"), random_model("llama", num_hidden_layers=1)
    write_gguf(folder / "tiny.gguf", model, "llama")
    (folder / "split").mkdir()
    assert len(write_gguf(folder / "split" / "tiny.gguf", model, "llama", tensors_per_part=5)) == 3
    return folder


@pytest.fixture
def split(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published / "split", tmp_path / "split"))


def found(model: Path) -> Path:
    return locate(str(model), "float32", on_convert=lambda what: None)


def part(folder: Path, number: int) -> Path:
    return folder / f"tiny-0000{number}-of-00003.gguf"


def test_a_split_file_is_one_model_whichever_part_is_named(published: Path, split: Path) -> None:
    (made,) = {found(part(split, number)) for number in (1, 2, 3)}
    assert made.name.startswith("tiny-")
    assert model_key(made) == model_key(found(published / "tiny.gguf"))


def test_a_split_file_and_the_whole_one_share_their_sessions(published: Path, split: Path, tmp_path: Path) -> None:
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.05)
    with Runtime.load(part(split, 2), dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text("A short text to keep. ")
        chat.save("s")
    with Runtime.load(published / "tiny.gguf", dtype="float32", kv=kv) as runtime:
        assert runtime.sessions() == ["s"]
    for spelling in (part(split, 3), split, published / "tiny.gguf"):
        run = CliRunner().invoke(app, ["sessions", "list", "-m", str(spelling), "--kv-dir", str(tmp_path / "kv")])
        assert run.output.startswith("s "), spelling


def test_missing_parts_are_named(split: Path) -> None:
    part(split, 1).unlink()
    with pytest.raises(ModelFileError) as error:
        found(part(split, 3))
    assert str(error.value) == (
        f"{part(split, 3)}: part 3 of 3 of a split model; put the other parts beside it, missing: "
        "tiny-00001-of-00003.gguf"
    )


def test_a_message_about_many_parts_is_short(tmp_path: Path) -> None:
    (tmp_path / "m-00007-of-00900.gguf").touch()
    with pytest.raises(ModelFileError, match=r"m-00008-of-00900.gguf, m-00009-of-00900.gguf and 891 more$"):
        found(tmp_path / "m-00007-of-00900.gguf")


def test_a_part_under_a_name_of_its_own_says_so(split: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="part 2 of the 3 parts of a split model; put all parts into one folder"):
        found(part(split, 2).rename(tmp_path / "mine.gguf"))


def test_parts_of_two_splits_say_which_is_which(published: Path, split: Path) -> None:
    shutil.copy(published / "tiny.gguf", part(split, 2))
    with pytest.raises(
        ModelFileError, match=r"00002-of-00003\.gguf: a whole model, but tiny-00001-of-00003\.gguf is part 1 of 3"
    ):
        found(part(split, 1))


NO_MODEL = {
    b"GGUF\1\0\0\0": r"it is of GGUF's version 1, which is not supported; take a .* version 2 or 3",
    b"GGUF\7\0\0\0": r"it is of GGUF's version 7, which is not supported",
    b"GGUF\0\0\0\3": r"its numbers are big-endian, which is not supported; take a little-endian file",
    b"tjgg\3\0\0\0": r"no GGUF model but a file of a format before GGUF; take a GGUF file",
    b"version https://git-lfs.github.com/spec/v1": r"no GGUF model but a pointer to one.*\(git lfs pull\)",
    b"<!DOCTYPE html>": r"magic: b'<!DO', expected b'GGUF'; is it complete\?",
}


@pytest.mark.parametrize("begins", NO_MODEL, ids=ascii)
def test_what_cannot_be_read_is_called_what_it_is(begins: bytes, published: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(begins + (published / "tiny.gguf").read_bytes()[len(begins) :])
    with pytest.raises(ModelFileError, match=NO_MODEL[begins]) as caught:
        found(path)
    assert "\n" not in str(caught.value)


def test_a_whole_file_may_be_called_as_its_first_part_was(published: Path, tmp_path: Path) -> None:
    merged = Path(shutil.copy(published / "tiny.gguf", tmp_path / "tiny-00001-of-00003.gguf"))
    assert found(merged) == found(published / "tiny.gguf")


def test_parts_of_another_split_are_left_alone(split: Path) -> None:
    for other in ("tiny-00001-of-00002.gguf", "tinier-00001-of-00003.gguf", "tiny-00004-of-00003.gguf"):
        shutil.copy(part(split, 2), split / other)
    assert gguf_files(part(split, 2)) == [part(split, number) for number in (1, 2, 3)]


def test_names_count_in_any_case(published: Path, split: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        part(split, number).rename(split / f"TINY-0000{number}-OF-00003.GGUF")
    loud = tmp_path / "MODELS.GGUF"
    loud.mkdir()
    shutil.copy(published / "tiny.gguf", loud / "TINY.GGUF")
    made = [found(part(split, 3)), found(split), found(loud / "TINY.GGUF"), found(loud)]
    assert len({model_key(one) for one in made}) == 1


def test_a_file_whose_name_says_nothing_is_known_by_how_it_begins(published: Path, tmp_path: Path) -> None:
    blob = Path(shutil.copy(published / "tiny.gguf", tmp_path / "sha256-0123"))
    assert found(blob) == found(published / "tiny.gguf")
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelFileError, match=r"notes.txt: neither a model directory nor a .gguf file"):
        found(tmp_path / "notes.txt")


@pytest.mark.parametrize("is_link_to_the_folder", [True, False])
def test_parts_are_found_through_links(is_link_to_the_folder: bool, split: Path, tmp_path: Path) -> None:
    """A hub's cache links each name to a file called by its digest; people link one part to where all are."""
    if is_link_to_the_folder:
        linked = tmp_path / "any name.gguf"
        linked.symlink_to(part(split, 2))
        linked = linked.rename(tmp_path / part(split, 2).name)
    else:
        snapshot = tmp_path / "snapshots" / "rev"
        snapshot.mkdir(parents=True)
        for number in (1, 2, 3):
            blob = part(split, number).rename(tmp_path / f"{number:064x}")
            (snapshot / part(split, number).name).symlink_to(os.path.relpath(blob, snapshot))
        linked = part(snapshot, 2)
        assert gguf_in(snapshot) == [part(snapshot, number) for number in (1, 2, 3)]
    assert found(linked).is_dir()


def test_a_folder_with_one_model_is_that_model(published: Path, split: Path, tmp_path: Path) -> None:
    alone = tmp_path / "tiny-GGUF"
    alone.mkdir()
    shutil.copy(published / "tiny.gguf", alone)
    (alone / "config.json").write_text('{"model_type": "llama"}')  # such repositories often have one
    (alone / "mmproj-F16.gguf").write_bytes(b"GGUF")
    assert found(alone) == found(published / "tiny.gguf")
    assert found(split) == found(part(split, 1))
    assert gguf_of(str(split)) == [part(split, number) for number in (1, 2, 3)]


def test_a_folder_with_several_models_lists_them(published: Path, split: Path) -> None:
    for name in ("b.gguf", "a.gguf", "mmproj-a.gguf"):
        shutil.copy(published / "tiny.gguf", split / name)
    with pytest.raises(ModelFileError) as error:
        found(split)
    names = "a.gguf, b.gguf, tiny-00001-of-00003.gguf"
    assert str(error.value) == f"{split}: it holds 3 GGUF models; name one of them: {names}"


def test_a_folder_of_folders_says_which_there_are(split: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    split.rename(tmp_path / "repo" / "Q4_K_M")
    with pytest.raises(ModelFileError, match=r"its GGUF files are in folders of it; name one of them: Q4_K_M$"):
        found(tmp_path / "repo")


def test_a_folder_with_weights_of_its_own_is_taken_as_it_is(published: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(found(published / "tiny.gguf"), tmp_path / "directory"))
    shutil.copy(published / "tiny.gguf", made)
    assert found(made) == made
    assert gguf_of(str(made)) == []


def test_titles() -> None:
    assert title(Path("a/Qwen3-8B.Q4_K_M-00002-of-00003.GGUF")) == "Qwen3-8B.Q4_K_M"
    assert title(Path("a/Qwen3-8B.Q4_K_M.gguf")) == "Qwen3-8B.Q4_K_M"
    assert title(Path("a/Qwen3-8B.d")) == "Qwen3-8B.d"
