"""Keys of a file as Python values; arrays are read when asked for."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.model.gguf.keys import BOOL, STRING, Array, Keys


def keys(data: bytes, **values: Any) -> Keys:
    mapped = mmap.mmap(-1, max(1, len(data)))
    mapped[: len(data)] = data
    return Keys(Path("a.gguf"), mapped, values)


def test_single_values() -> None:
    found = keys(b"", name=b"llama", layers=3, theta=0.5, flag=True)
    assert dict(found) == {"name": "llama", "layers": 3, "theta": 0.5, "flag": True}
    assert (len(found), found.count("name"), found.count("other")) == (4, None, None)
    with pytest.raises(KeyError):
        found["other"]


@pytest.mark.parametrize(
    ("kind", "letter", "items"), [(4, "I", [1, 2**32 - 1]), (5, "i", [-1, 7]), (6, "f", [0.5, -2.0]), (10, "Q", [])]
)
def test_arrays_of_numbers(kind: int, letter: str, items: list[Any]) -> None:
    found = keys(b"head" + struct.pack(f"<{len(items)}{letter}", *items), all=Array(kind, len(items), 4))
    assert (found["all"], found.count("all")) == (items, len(items))


def test_arrays_of_truths_and_texts() -> None:
    texts = b"".join(struct.pack("<Q", len(text)) + text for text in (b"a", b"", "é".encode()))
    assert keys(texts, all=Array(STRING, 3, 0))["all"] == ["a", "", "é"]
    assert keys(b"\1\0", all=Array(BOOL, 2, 0))["all"] == [True, False]


def test_what_is_no_text_is_told_when_it_is_read() -> None:
    found = keys(struct.pack("<Q", 1) + b"\xff", name=b"\xff", all=Array(STRING, 1, 0))
    for name in ("name", "all"):
        with pytest.raises(ModelFileError, match=f"a.gguf: {name}: .* is not UTF-8"):
            found[name]
