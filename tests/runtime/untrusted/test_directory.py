"""Files that are small to write and large to read are refused before a parser sees them, whatever they are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import Fuzz
from tiny_models import save_tiny_model

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.untrusted import json_files
from stratakv.runtime.untrusted.directory import check_directory
from stratakv.runtime.untrusted.settings import MAX_ADDED, MAX_LIST

MANY = b'{"a":[' + b"[]," * (1 << 21) + b"[]]}"
DEEP = b'{"a":' * (1 << 18) + b"1" + b"}" * (1 << 18)
FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
         "tokenizer.json", "added_tokens.json", "vocab.json", "model.safetensors"]  # fmt: skip


@pytest.fixture(scope="module")
def fuzz(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with Fuzz(tmp_path_factory.mktemp("fuzz"), ["model", [str(tiny_llama)]]) as fuzz:
        yield fuzz


def outcome_of(fuzz: Fuzz, folder: Path, path: Path, name: str) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    outcome = fuzz.run(name, "model", [str(folder)], size, str(path))
    shutil.rmtree(folder)
    return outcome


def test_large_files(fuzz: Fuzz, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for file in FILES:
        for text in (MANY, DEEP):
            shutil.copytree(tiny_llama, folder)
            header = len(text).to_bytes(8, "little") if file == "model.safetensors" else b""
            (folder / file).write_bytes(header + text)
            assert outcome_of(fuzz, folder, folder / file, f"{file} of {len(text)} bytes") == "refused", file
    print(f"\n{fuzz.figures.line('large files')}")
    assert fuzz.figures.failures == []


def test_a_long_name_of_many_values(fuzz: Fuzz, tiny_llama: Path, tmp_path: Path) -> None:
    for file, values in (("config.json", 8_000), ("tokenizer_config.json", 4_000)):
        path = shutil.copytree(tiny_llama, tmp_path / file) / file
        settings = json.loads(path.read_text()) | {"x" * 500_000: [0] * values}
        path.write_text(json.dumps(settings))
        assert outcome_of(fuzz, path.parent, path, f"{file}, a long name") == "loaded"
    print(f"\n{fuzz.figures.line('long names, too')}")
    assert fuzz.figures.failures == []


def many_tokens(folder: Path, where: str, count: int) -> Path:
    """Adds `count` tokens to a model's tokenizer in one of the places that transformers takes them from."""
    words = [f"k{number}" for number in range(count)]
    if where == "added_tokens_decoder":
        path, value = (
            folder / "tokenizer_config.json",
            {where: {str(i + 259): {"content": w} for i, w in enumerate(words)}},
        )
    elif where == "added_tokens":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        path = folder / "tokenizer.json"
        value = {where: [{"id": i + 259, "content": word, **flags} for i, word in enumerate(words)]}
    elif where == "added_tokens.json":
        path, value = folder / where, {word: i + 259 for i, word in enumerate(words)}
    else:
        path, value = folder / where, {"extra_special_tokens": words}
    if path.name in ("added_tokens.json", "special_tokens_map.json"):  # read only where this file is not
        (folder / "tokenizer_config.json").unlink()
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | value))
    return path


def test_as_many_tokens_as_may_be_added(fuzz: Fuzz, tmp_path: Path) -> None:
    whole = save_tiny_model(tmp_path / "whole", vocab_size=259 + MAX_ADDED + 1)
    places = {"added_tokens_decoder": MAX_ADDED, "added_tokens": MAX_ADDED, "added_tokens.json": MAX_ADDED,
              "tokenizer_config.json": MAX_LIST, "special_tokens_map.json": MAX_LIST}  # fmt: skip
    folder = tmp_path / "model"
    for where, most in places.items():
        for count, expected in ((most, "loaded"), (most + 1, "refused")):
            shutil.copytree(whole, folder)
            path = many_tokens(folder, where, count)
            assert outcome_of(fuzz, folder, path, f"{count} in {where}") == expected, f"{count} in {where}"
    print(f"\n{fuzz.figures.line('added tokens, too')}")
    assert fuzz.figures.failures == []


def test_many_names_at_the_outermost_level(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({f"k{number}": 0 for number in range(100_000)}))
    with pytest.raises(ModelFileError, match="100000 names"):
        check_directory(tmp_path / "model")


def test_a_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="1099511627776 bytes, at most 1048576 are allowed"):
        json_files.read(tmp_path / "config.json", json_files.CONFIG)


@pytest.mark.parametrize(
    "value",
    [
        {}, {"a": 1, "b": [1, [2, {"c": []}]]}, {"[{,": '}]"\\'}, {'\\"': '\\\\"', "b": "\\"}, {"a": '"' * 9},
        {"a" * (1 << 20): [1], "b": [["\\" * (1 << 20), ","]]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_what_is_counted_is_what_a_parser_finds(value: dict[str, object], indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()

    def depth(item: object) -> int:
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    def values(item: object) -> int:
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if inner is None else max(1, len(inner)) + sum(map(values, inner))

    count = values(value)
    assert json_files.parse(text, "content", json_files.Limits(1 << 30, count), ModelFileError) == value
    with pytest.raises(ModelFileError, match=f"{count} values"):
        json_files.parse(text, "content", json_files.Limits(1 << 30, count - 1), ModelFileError)
    nested = text
    for _ in range(json_files.MAX_DEPTH - depth(value)):
        nested = b'{"a":' + nested + b"}"
    json_files.parse(nested, "content", json_files.VOCABULARY, ModelFileError)
    with pytest.raises(ModelFileError, match="32 levels"):
        json_files.parse(b"[" + nested + b"]", "content", json_files.VOCABULARY, ModelFileError)


@pytest.mark.parametrize("name", ["model", "mod", "model2", "m\\u006fdel"])
def test_only_what_is_left_out_is_not_parsed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f' {{ "first": [1, {{}}], "{name}" : {{"a": "}},{{"}}, "last": {{"model": 2}} }}\n')
    found = json_files.read_without(path, "model", json_files.VOCABULARY, json_files.CONFIG)
    whole = json.loads(path.read_text())
    assert found == {key: value for key, value in whole.items() if name != "model" or key != "model"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a":1', '{"a":1}}', '{"a":1},{}', '{"model":1,"model":2}', '{"a":"}']
)
def test_a_part_of_what_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"x\.json: content: "):
        json_files.read_without(tmp_path / "x.json", "model", json_files.VOCABULARY, json_files.CONFIG)
