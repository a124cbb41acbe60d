"""JSON files of a model, read strictly and within bounds: they decide about code and memory.

A parser makes a text several dozen times larger, so the text is outlined first: how deep it goes and how many
values it has, counted in its bytes. The count is the parser's own up to where that would stop.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..api.errors import ModelFileError
from .numbers import shown

Refuse = Callable[[str], Exception]
"""A function that makes the error to raise out of a text that says what is wrong."""
MAX_DEPTH = 32
MAX_OUTERMOST = 64
"""The most names in an object that is read in part."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one file: its bytes, and how many values it has (None: not counted, which loads no numpy)."""

    size: int
    values: int | None


CONFIG = Limits(1 << 20, 1 << 14)
"""The bounds are small because transformers takes many times the file's size to read it."""
TOKENIZER_SETTINGS = Limits(8 << 20, 1 << 18)
"""Such files list added tokens with a handful of values each: Gemma 3 has 1.2 MB and 50,000 values."""
INDEX = Limits(4 << 20, 1 << 17)
VOCABULARY = Limits(64 << 20, 1 << 22)
"""Gemma 3's 262,144 tokens with their merges have 33 MB and 1.9 million values."""
HEADER = Limits(16 << 20, 1 << 20)
"""The bounds of a safetensors file's header."""


@dataclass(slots=True)
class _Outline:
    depth: int = 0
    values: int = 0
    borders: list[int] = field(default_factory=list)
    """The offset at which the outermost object begins, those of its commas, and that of its end."""


def parse(data: bytes, name: str, limits: Limits, refuse: Refuse) -> dict[str, Any]:
    """Parse an object. Raises the error that `refuse` makes if `data` is none, has a name twice, a NaN, or more than is
    allowed."""
    if limits.values is not None:
        _bounded(data, name, limits, refuse)
    return _load(data, name, refuse)


def read(path: Path, limits: Limits) -> dict[str, Any]:
    """Read the object in a file. Raises ModelFileError as `parse`."""
    return parse(_bytes(path, limits), "content", limits, of_file(path))


def of_file(path: Path) -> Refuse:
    """A function that makes a ModelFileError, which names the file, out of what is wrong."""
    return lambda what: ModelFileError(f"{path}: {what}")


def read_without(path: Path, left_out: str, limits: Limits, rest: Limits) -> dict[str, Any]:
    """Read a file as `read`, but only bound the outermost `left_out` and do not parse it; the parsed rest has the
    limits `rest`."""
    data = _bytes(path, limits)
    borders = _bounded(data, "content", limits, of_file(path)).borders
    if (
        not 2 <= len(borders) <= MAX_OUTERMOST
        or data[: borders[0] + 1].strip() != b"{"
        or data[borders[-1] :].strip() != b"}"
    ):
        raise ModelFileError(f"{path}: content: not an object of up to {MAX_OUTERMOST} names; is it complete?")
    members = [data[begin + 1 : end].strip() for begin, end in pairwise(borders)]
    kept = [member for member in members if not member.startswith(b'"%s"' % left_out.encode())]
    if len(kept) < len(members) - 1:
        raise ModelFileError(f"{path}: content: the name {shown(left_out)} is there twice")
    return parse(b"{%s}" % b",".join(kept), "content", rest, of_file(path))


def _bytes(path: Path, limits: Limits) -> bytes:
    with path.open("rb") as file:
        data = file.read(limits.size + 1)
    if len(data) > limits.size:
        raise ModelFileError(f"{path}: {path.stat().st_size} bytes, at most {limits.size} are allowed")
    return data


def _bounded(data: bytes, name: str, limits: Limits, refuse: Refuse) -> _Outline:
    found = _outline(data)
    if found.depth > MAX_DEPTH:
        raise refuse(f"{name}: more than {MAX_DEPTH} levels")
    if limits.values is not None and found.values > limits.values:
        raise refuse(f"{name}: {found.values} values, at most {limits.values} are allowed")
    return found


def _outline(data: bytes) -> _Outline:
    import numpy as np

    if b"\\" in data:  # in pairs from the left, as a parser takes them; what is left escapes a quote
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    found, quoted, depth = _Outline(), 0, 0
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK, len(data) - start), start)
        inside = (np.cumsum(block == ord('"'), dtype=np.uint8) + np.uint8(quoted)) & 1
        outside = inside == 0
        opens = ((block == ord("{")) | (block == ord("["))) & outside
        closes = ((block == ord("}")) | (block == ord("]"))) & outside
        commas = (block == ord(",")) & outside
        depths = depth + np.cumsum(opens.astype(np.int8) - closes.astype(np.int8), dtype=np.int32)
        found.depth = max(found.depth, int(depths.max()))
        found.values += int(opens.sum()) + int(commas.sum())
        outermost = ((opens | commas) & (depths == 1)) | (closes & (depths == 0))
        found.borders += (start + np.flatnonzero(outermost)).tolist()
        quoted, depth = int(inside[-1]), int(depths[-1])
    return found


def _load(data: bytes, name: str, refuse: Refuse) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise refuse(f"{name}: the name {shown(twice)} is there twice")
        return found

    def no_constant(constant: str) -> float:
        raise refuse(f"{name}: {constant} is no JSON")

    try:
        found = json.loads(data.decode(), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise refuse(f"{name}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise refuse(f"{name}: a JSON {type(found).__name__}, expected an object")
    return found
