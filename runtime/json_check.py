"""JSON files of a model, read strictly and within bounds: what decides about code or memory is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ModelFileError
from .numbers_check import check_number, shown

MAX_DEPTH = 32
MAX_VALUES = 1 << 14
"""In config.json and generation_config.json; transformers takes many times its size to read a large one."""
MAX_ADDED_VALUES = 1 << 18
"""In the tokenizer's settings, which list added tokens with a handful of values each."""
MAX_CONFIG_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 128 << 20
_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code"})
"""Names under which a file may ask for code to be run."""


def parse(path: Path, data: bytes, field: str) -> dict[str, Any]:
    """An object. Raises ModelFileError if `data` is none, has a name twice, a NaN, or too many levels."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for number, name in enumerate(names) if name in names[:number])
            raise ModelFileError(f"{path}: {field}: the name {shown(twice)} is there twice")
        return found

    def refuse(constant: str) -> float:
        raise ModelFileError(f"{path}: {field}: {constant} is no JSON")

    try:
        found = json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: {field}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: {field}: a JSON {type(found).__name__}, expected an object")
    _check_depth(path, field, found)
    return found


def read(path: Path, most: int) -> dict[str, Any]:
    """The object in a file of up to `most` bytes."""
    size = path.stat().st_size
    if size > most:
        raise ModelFileError(f"{path}: {size} bytes, at most {most} are allowed")
    return parse(path, path.read_bytes(), "content")


def check_settings(path: Path, settings: dict[str, Any], most: int) -> None:
    """Raises ModelFileError for a setting that names code to run, or a number beyond `numbers_check`, at any depth;
    also for more than `most` values."""
    pending: list[tuple[str, Any]] = [("", settings)]
    seen = 0
    while pending:
        where, value = pending.pop()
        seen += 1
        if seen > most:
            raise ModelFileError(f"{path}: content: more than {most} values")
        if isinstance(value, list):
            pending += [(f"{where}[{number}]", item) for number, item in enumerate(value)]
        elif isinstance(value, dict):
            for name, item in value.items():
                inner = f"{where}.{name}" if where else name
                _check_setting(path, inner, name, item)
                pending.append((inner, item))


def _check_setting(path: Path, field: str, name: str, value: Any) -> None:
    if name in _CODE:
        raise ModelFileError(f"{path}: {field}: the file asks for code of its own to be run, which is never done")
    if name.endswith("_implementation") and isinstance(value, str) and "/" in value:
        raise ModelFileError(f"{path}: {field}: {shown(value)} would be fetched and run, which is never done")
    check_number(path, field, name, value)


def _check_depth(path: Path, field: str, found: dict[str, Any]) -> None:
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        values = (value for item in level for value in (item.values() if isinstance(item, dict) else item))
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise ModelFileError(f"{path}: {field}: more than {MAX_DEPTH} levels")
