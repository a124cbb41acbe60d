"""A bounded look at a GGUF file's header: the one place where such a header is read.

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    keys         name | type u32 | value          a string is its length u64 and its bytes,
    tensors      name | dims u32 | dim u64 ... | type u32 | offset u64       an array its type u32, count u64, items
    padding to general.alignment, then the tensors' data

A header may say anything: a count of 2^60 in 100 bytes keeps a parser that believes it busy for ever. Here every length
is compared with the bytes that are left before anything is read or counted, so the work is bounded by the file's size.
A header that passed has, besides, no name twice, no array in an array, known types, and tensors inside the file that do
not overlap. `architectures` and `plan` check what the keys mean, and that the weights they ask for are there.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.numbers import shown
from .keys import BOOL, NUMBERS, STRING, Array, Keys
from .number_types import Tensor, packed

MAX_STRING = 1 << 20
MAX_NAME = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 10
"""The most keys of a file. Known files have fewer than 100."""
MAX_VOCABULARY = 1 << 19
"""The most items of each array that describes the vocabulary; other arrays have up to `MAX_ITEMS` together."""
MAX_ITEMS = 1 << 16
MAX_ALIGNMENT = 1 << 16
MAX_PARTS = 1024

_VERSIONS = (2, 3)
_OLD = "a file of a format before GGUF; take a GGUF file of this model"
_OTHERS = {
    b"version https://git-lfs": "a pointer to one, as Git leaves it without LFS; fetch the file itself (git lfs pull)",
    b"lmgg": _OLD, b"fmgg": _OLD, b"tjgg": _OLD, b"algg": _OLD,
}  # fmt: skip
"""First bytes of files that are taken for GGUF by their names, and what such files are."""
_ARRAY = 9
_MIN_KEY, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_VOCABULARY = {
    "tokenizer.ggml.tokens": STRING, "tokenizer.ggml.merges": STRING,
    "tokenizer.ggml.scores": 6, "tokenizer.ggml.token_type": 5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a GGUF file, or of all parts of a split one together."""

    path: Path
    """The file, or the first part, whose keys say what the model is."""
    keys: Keys
    tensors: dict[str, Tensor]
    header_bytes: int
    """Bytes before the tensors' data; most of them are the vocabulary."""
    part: int
    """The number of this part in a split file, from 0."""
    parts: int
    """The number of parts; 1 unless the file is split."""


def read_gguf(paths: Iterable[Path]) -> Contents:
    """Read a file's header, or those of all parts of a split one in any order.

    Raises ModelFileError, naming file and field, unless the headers can be believed, or if parts are missing.
    """
    found = sorted((_read(path) for path in paths), key=lambda one: (one.part, one.path))
    first = found[0]
    for one in found:
        if one.parts != first.parts:
            raise ModelFileError(
                f"{one.path}: {_of(one)}, but {first.path.name} is {_of(first)}; put parts of one split together"
            )
    if [one.part for one in found] != list(range(first.parts)):
        here = ", ".join(str(one.part + 1) for one in found)
        raise ModelFileError(
            f"{first.path}: part {here} of the {first.parts} parts of a split model; put all parts into one folder "
            "under their own names, or merge them with llama-gguf-split"
        )
    tensors: dict[str, Tensor] = {}
    for one in found:
        if twice := tensors.keys() & one.tensors.keys():
            raise ModelFileError(f"{one.path}: tensor {shown(min(twice))} is in another part as well")
        tensors |= one.tensors
    if len(tensors) > MAX_TENSORS:
        raise ModelFileError(f"{first.path}: {len(tensors)} tensors in all parts, at most {MAX_TENSORS} are allowed")
    return Contents(first.path, first.keys, tensors, sum(one.header_bytes for one in found), 0, first.parts)


def _of(contents: Contents) -> str:
    return "a whole model" if contents.parts == 1 else f"part {contents.part + 1} of {contents.parts}"


@dataclass(slots=True)
class _Header:
    path: Path
    data: mmap.mmap
    at: int = 0
    keys: dict[str, Any] = field(default_factory=dict)
    items: int = 0

    def fail(self, name: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: not a readable GGUF model: {name}: {problem}; is it complete?")

    def unpack(self, code: str, name: str) -> Any:
        size = struct.calcsize(f"<{code}")
        if size > len(self.data) - self.at:
            raise self.fail(name, f"the file ends at byte {len(self.data)}, inside this field")
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def skip(self, size: int, name: str) -> None:
        if size > len(self.data) - self.at:
            raise self.fail(name, f"{size} bytes long, the file has {len(self.data) - self.at} more")
        self.at += size

    def string(self, name: str, longest: int) -> bytes:
        length = self.unpack("Q", name)
        if length > longest:
            raise self.fail(name, f"a string of {length} bytes, at most {longest} are allowed")
        start = self.at
        self.skip(length, name)
        return self.data[start : self.at]

    def name(self, where: str) -> str:
        found = self.string(where, MAX_NAME)
        try:
            text = found.decode()
        except UnicodeDecodeError as error:
            raise self.fail(where, f"{shown(found)} is not UTF-8") from error
        if not text:
            raise self.fail(where, "it is empty")
        return text


def _read(path: Path) -> Contents:
    size = path.stat().st_size
    if size < 24:
        raise ModelFileError(f"{path}: not a readable GGUF model: header: {size} bytes, it has 24; is it complete?")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = _Header(path, data)
    magic = data[:4]
    if magic != b"GGUF":
        if other := next((what for begins, what in _OTHERS.items() if data[: len(begins)] == begins), None):
            raise ModelFileError(f"{path}: no GGUF model but {other}")
        raise header.fail("magic", f"{shown(magic)}, expected b'GGUF'")
    header.at = 4
    version = header.unpack("I", "version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        what = "its numbers are big-endian" if swapped in (1, *_VERSIONS) else f"it is of GGUF's version {version}"
        raise ModelFileError(
            f"{path}: {what}, which is not supported; take a little-endian file of version 2 or 3 of this model"
        )
    num_tensors = _count(header, "tensor count", MAX_TENSORS, _MIN_TENSOR)
    for number in range(_count(header, "key count", MAX_KEYS, _MIN_KEY)):
        _read_key(header, number)
    tensors = _tensors(header, num_tensors)
    _check_vocabulary(header)
    part, parts = _part(header)
    return Contents(path, Keys(path, data, header.keys), tensors, header.at, part, parts)


def _count(header: _Header, name: str, most: int, smallest: int) -> int:
    count: int = header.unpack("Q", name)
    possible = min(most, (len(header.data) - header.at) // smallest)
    if count > possible:
        raise header.fail(name, f"{count}, at most {possible} are possible here")
    return count


def _read_key(header: _Header, number: int) -> None:
    name = header.name(f"key {number}")
    where = f"key {shown(name)}"
    if name in header.keys:
        raise header.fail(where, "it is there twice")
    kind = header.unpack("I", where)
    if kind == STRING:
        value: Any = header.string(where, MAX_STRING)
    elif kind == _ARRAY:
        value = _skip_array(header, name, where)
    else:
        value = _scalar(header, kind, where)
    header.keys[name] = value


def _scalar(header: _Header, kind: int, where: str) -> Any:
    if kind not in NUMBERS:
        raise header.fail(where, f"a value of the unknown type {kind}")
    value = header.unpack(NUMBERS[kind], where)
    if kind == BOOL and value > 1:
        raise header.fail(where, f"{value}, a truth value is 0 or 1")
    return bool(value) if kind == BOOL else value


def _skip_array(header: _Header, name: str, where: str) -> Array:
    kind = header.unpack("I", where)
    if kind != _VOCABULARY.get(name, kind):
        raise header.fail(where, f"items of type {kind}, expected {_VOCABULARY[name]}")
    if kind == _ARRAY:
        raise header.fail(where, "an array of arrays")
    if kind != STRING and kind not in NUMBERS:
        raise header.fail(where, f"items of the unknown type {kind}")
    smallest = 8 if kind == STRING else struct.calcsize(f"<{NUMBERS[kind]}")
    big = name in _VOCABULARY
    count = _count(header, where, MAX_VOCABULARY if big else MAX_ITEMS - header.items, smallest)
    header.items += 0 if big else count
    start = header.at
    if kind == STRING:
        _skip_strings(header, count, where)
    else:
        header.skip(count * smallest, where)
    return Array(kind, count, start)


def _skip_strings(header: _Header, count: int, where: str) -> None:
    """Skip `count` strings. It makes no call per string, as `_Header.string` would: vocabularies have hundreds of
    thousands."""
    data, at, last = header.data, header.at, len(header.data) - 8
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        if at > last:
            break
        (length,) = unpack(data, at)
        if length > MAX_STRING:
            raise header.fail(where, f"a string of {length} bytes, at most {MAX_STRING} are allowed")
        at += 8 + length
    else:
        header.skip(at - header.at, where)
        return
    raise header.fail(where, f"the file ends at byte {len(data)}, inside this field")


def _tensors(header: _Header, count: int) -> dict[str, Tensor]:
    listed: list[tuple[str, list[int], int, int, int]] = []
    names: set[str] = set()
    for number in range(count):
        name = header.name(f"tensor {number}")
        where = f"tensor {shown(name)}"
        if name in names:
            raise header.fail(where, "it is there twice")
        names.add(name)
        shape = _shape(header, where)
        kind = header.unpack("I", where)
        block, block_bytes = packed(header.path, name, kind)
        if shape[0] % block:
            raise header.fail(where, f"rows of {shape[0]} numbers, its type packs {block} at a time")
        listed.append((name, shape, kind, header.unpack("Q", where), prod(shape) // block * block_bytes))
    alignment = header.keys.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise header.fail("general.alignment", f"{shown(alignment)}, expected a power of two up to {MAX_ALIGNMENT}")
    start = -(-header.at // alignment) * alignment
    found, end = {}, 0
    for name, shape, kind, offset, size in sorted(listed, key=lambda entry: entry[3]):
        where = f"tensor {shown(name)}"
        if offset % alignment:
            raise header.fail(where, f"offset {offset} is no multiple of the alignment {alignment}")
        if offset < end:
            raise header.fail(where, f"offset {offset} is inside the tensor before, which ends at {end}")
        end = offset + size
        if start + end > len(header.data):
            raise header.fail(where, f"it ends at byte {start + end}, the file at {len(header.data)}")
        found[name] = Tensor(name, tuple(reversed(shape)), kind, header.path, start + offset, size)
    return found


def _shape(header: _Header, where: str) -> list[int]:
    dims = header.unpack("I", where)
    if not 1 <= dims <= 4:
        raise header.fail(where, f"{dims} dimensions, expected 1 to 4")
    shape = [header.unpack("Q", where) for _ in range(dims)]
    if min(shape) < 1 or prod(shape) >= 1 << 63:
        raise header.fail(where, f"its shape is {shown(shape)}")
    return shape


def _check_vocabulary(header: _Header) -> None:
    tokens = header.keys.get("tokenizer.ggml.tokens")
    for name in _VOCABULARY:
        found = header.keys.get(name)
        if found is not None and not isinstance(found, Array):
            raise header.fail(name, f"{shown(found)}, expected an array")
    for name in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        found, expected = header.keys.get(name), tokens.count if tokens is not None else 0
        if found is not None and found.count != expected:
            raise header.fail(name, f"{found.count} items for {expected} tokens")


def _part(header: _Header) -> tuple[int, int]:
    """The number of this part, and of all parts."""
    part, parts = header.keys.get("split.no", 0), header.keys.get("split.count", 0)
    if type(parts) is not int or not 0 <= parts <= MAX_PARTS:
        raise header.fail("split.count", f"{shown(parts)}, expected a number up to {MAX_PARTS}")
    if type(part) is not int or not 0 <= part < max(parts, 1):
        raise header.fail("split.no", f"{shown(part)}, expected a number below {max(parts, 1)}")
    return part, max(parts, 1)
