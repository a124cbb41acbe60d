"""JSON is read strictly and within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.untrusted import json_files
from stratakv.runtime.untrusted.json_files import Limits, parse, read, read_without

LIMITS = Limits(1000, 20)


def refuse(what: str) -> Exception:
    return KeyError(what)


def test_an_object_is_read() -> None:
    value = {"a": [1, {"b": 'x"}],{'}], "c": None, "d\\": '\\"'}
    assert parse(json.dumps(value).encode(), "content", LIMITS, refuse) == value


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[1]", "content: a JSON list, expected an object"),
        (b'{"a": 1', "content: not JSON"),
        (b'{"a": "\xff"}', "content: not JSON"),
        (b'{"a": 1, "a": 2}', "content: the name 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 2}}', "content: the name 'b' is there twice"),
        (b'{"a": NaN}', "content: NaN is no JSON"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "content: more than 32 levels"),
        (b'{"a": [' + b"1," * 30 + b"1]}", "content: 32 values, at most 20 are allowed"),
    ],
)
def test_others_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(KeyError, match=says):
        parse(data, "content", LIMITS, refuse)


def test_brackets_in_texts_do_not_count() -> None:
    text = '[{,\\"' * 50
    assert parse(json.dumps({"a": text}).encode(), "content", LIMITS, refuse) == {"a": text}


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps({"a": ["x,y", {"b": "\\\\"}], "c": [[1, 2], 3]}).encode()
    whole = json_files._outline(data)
    for size in range(1, 12):
        monkeypatch.setattr(json_files, "_BLOCK", size)
        assert json_files._outline(data) == whole


def test_a_file_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert read(path, LIMITS) == {"a": 1}
    path.write_text(" " * 1001)
    with pytest.raises(ModelFileError, match=r"config\.json: 1001 bytes, at most 1000 are allowed"):
        read(path, LIMITS)


@pytest.mark.parametrize("value", [{"big": [1] * 15, "a": 1}, {"a": 1, "big": "x"}, {"a": {"big": 2}}, {"big": 1}])
def test_a_part_is_left_out_unread(value: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value))
    found = read_without(path, "big", LIMITS, Limits(1000, 5))
    assert found == {name: part for name, part in value.items() if name != "big"}


def test_twice_is_refused_there_too(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"big": 1, "a": 2, "big": 3}')
    with pytest.raises(ModelFileError, match="the name 'big' is there twice"):
        read_without(path, "big", LIMITS, LIMITS)
