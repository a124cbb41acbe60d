"""The keys of a file as plain Python values. Arrays are read when they are asked for: most of a header is its
vocabulary."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.numbers import shown

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Types of numbers in the file, each with its letter in `struct`."""
BOOL, STRING = 7, 8


@dataclass(frozen=True, slots=True)
class Array:
    """The place of an array in the file, whose bounds were checked."""

    kind: int
    count: int
    start: int


class Keys(Mapping[str, Any]):
    """A map of names to str, int, float, bool or a list of those. A list is read anew each time. A text is decoded:
    raises ModelFileError if it is no UTF-8."""

    def __init__(self, path: Path, data: mmap.mmap, values: dict[str, Any]) -> None:
        self._path, self._data, self._values = path, data, values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if isinstance(value, bytes):
            return self._text(name, value)
        if not isinstance(value, Array):
            return value
        if value.kind == STRING:
            return list(self._texts(name, value))
        found = struct.unpack_from(f"<{value.count}{NUMBERS[value.kind]}", self._data, value.start)
        return [bool(item) for item in found] if value.kind == BOOL else list(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def count(self, name: str) -> int | None:
        """The number of items in an array; None if there is none of that name."""
        value = self._values.get(name)
        return value.count if isinstance(value, Array) else None

    def _texts(self, name: str, array: Array) -> Iterator[str]:
        at, unpack = array.start, struct.Struct("<Q").unpack_from
        for _ in range(array.count):
            (length,) = unpack(self._data, at)
            yield self._text(name, self._data[at + 8 : at + 8 + length])
            at += 8 + length

    def _text(self, name: str, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{self._path}: {name}: {shown(value)} is not UTF-8; take another file") from error
