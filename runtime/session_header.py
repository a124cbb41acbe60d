"""A session's header and page chains, read without torch and without trust.

A record's checksum says that its bytes are those that were written, not who wrote them: a store folder may
come from elsewhere. So everything is checked before it is used, and what is wrong is a RecordError that
names the field. What only a model can tell (vocabulary, shapes of KV) is `session_check`'s and `state_check`'s.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any, TypeGuard

from ..storage import CHAIN_BYTES, LaterVersionError, RecordError

VERSION = 1
MAX_HEADER_BYTES = 16 << 20
"""The transcript is in it. Parsed, it may take twenty times as much."""
MAX_TENSORS = 1 << 16
ROLES = frozenset({"user", "assistant", "document"})
_LATEST = 1e11
"""Seconds since 1970 that a date can still be made of."""
_ITEM_BYTES = {"I64": 8, "F64": 8, "I32": 4, "F32": 4, "I16": 2, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "BOOL": 1}
_MAX_INDEX = 4096


def header_of(payload: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """A session's header, with `num_tokens`, and its page chains. Raises RecordError, LaterVersionError."""
    layout, metadata, data = _parts(payload)
    header = _object(_parsed(metadata.get("stratakv", ""), "header"), "header")
    _check_version(header.get("version"))
    _check_tensors(layout, data)
    pages = header.get("num_pages", -1)
    tokens, chains = _vector(layout, "tokens", "I64"), _vector(layout, "chains", "U8")
    if not is_count(pages) or pages > tokens or chains != max(1, CHAIN_BYTES * pages):
        raise RecordError(f"num_pages: {shown(pages)}, but there are {tokens} tokens and {chains} bytes of chains")
    index, notes = header.get("index"), _object(header.get("notes"), "notes")
    _require(isinstance(index, str) and len(index) <= _MAX_INDEX and index.isprintable(), "index: not a name")
    reach = header.get("reach", 0)
    _require(is_count(reach) and reach <= tokens, f"reach: {shown(reach)}, but there are {tokens} tokens")
    if header.get("saved_at") is not None:
        _require(is_time(header["saved_at"]), f"saved_at: {shown(header['saved_at'])}")
    if notes:
        _check_notes(notes)
    start = layout["chains"]["data_offsets"][0]
    borders = range(start, start + CHAIN_BYTES * pages + 1, CHAIN_BYTES)
    return header | {"num_tokens": tokens, "reach": reach}, [bytes(data[a:b]) for a, b in pairwise(borders)]


def _check_version(version: object) -> None:
    """Before anything else is looked at: what a later version means by it is not known."""
    told = f"version: has format {shown(version)}, this program reads {VERSION}"
    if is_count(version) and version > VERSION:
        raise LaterVersionError(told)
    _require(version == VERSION, told)


def is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_time(value: object) -> bool:
    """Whether a date can be made of it."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < _LATEST


def shown(value: object) -> str:
    """A value from a record, short enough for a message and harmless in a terminal."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def layout_of(payload: bytes) -> tuple[dict[str, Any], dict[str, str], memoryview]:
    """What a safetensors file says about its tensors, its metadata, and the tensors' bytes. Raises RecordError."""
    layout, metadata, data = _parts(payload)
    _check_tensors(layout, data)
    return layout, metadata, data


def _parts(payload: bytes) -> tuple[dict[str, Any], dict[str, str], memoryview]:
    length = int.from_bytes(payload[:8], "little")
    most = min(len(payload) - 8, MAX_HEADER_BYTES)
    if length > most:
        raise RecordError(f"header: {length} bytes long, at most {most} can be")
    layout, data = _object(_parsed(payload[8 : 8 + length], "header"), "header"), memoryview(payload)[8 + length :]
    metadata = _object(layout.pop("__metadata__", {}), "metadata")
    _require(all(isinstance(value, str) for value in metadata.values()), "metadata: not texts")
    return layout, metadata, data


def _parsed(text: bytes | str, field: str) -> object:
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{field}: not JSON ({error})") from error


def _check_tensors(layout: dict[str, Any], data: memoryview) -> None:
    """Each is where it says, one behind the other, and nothing is left over."""
    _require(len(layout) <= MAX_TENSORS, f"header: {len(layout)} tensors, at most {MAX_TENSORS} can be")
    ends = []
    for name, entry in layout.items():
        shape, at = _object(entry, f"tensor {shown(name)}").get("shape"), entry.get("data_offsets")
        kind = entry.get("dtype")
        if (
            not isinstance(kind, str) or kind not in _ITEM_BYTES
            or not isinstance(shape, list) or len(shape) > 8 or not all(is_count(n) and n < 1 << 48 for n in shape)
            or not isinstance(at, list) or len(at) != 2 or not all(map(is_count, at))
            or at[1] - at[0] != math.prod(shape) * _ITEM_BYTES[kind]
        ):  # fmt: skip
            raise RecordError(f"tensor {shown(name)}: {shown(entry)} describes none")
        ends.append((at[0], at[1]))
    end = 0
    for start, stop in sorted(ends):
        _require(start == end, f"tensors: they leave a gap or overlap at byte {min(start, end)}")
        end = stop
    _require(end == len(data), f"tensors: {end} bytes, the record has {len(data)}")


def _vector(layout: dict[str, Any], name: str, dtype: str) -> int:
    """The length of a one-dimensional tensor."""
    entry = layout.get(name)
    if entry is None or entry["dtype"] != dtype or len(entry["shape"]) != 1:
        raise RecordError(f"{name}: {shown(entry)}, expected a list of {dtype}")
    return int(entry["shape"][0])


def _check_notes(notes: dict[str, Any]) -> None:
    """What a conversation left; `chat.Chat.save`."""
    messages, unfed = notes.get("messages"), notes.get("unfed")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise RecordError("notes.messages: not a list of a role and a text each")
    if not isinstance(unfed, list) or not all(map(is_count, unfed)):
        raise RecordError("notes.unfed: not a list of token ids")
    _require(isinstance(notes.get("system", 0), str | None), f"notes.system: {shown(notes.get('system'))}, not a text")
    generation = notes.get("generation", {})
    _require(isinstance(generation, dict), f"notes.generation: {shown(generation)}, not an object")


def _is_message(found: object) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == {"role", "content"}
        and isinstance(found["role"], str)
        and found["role"] in ROLES
        and isinstance(found["content"], str)
    )


def _object(found: Any, field: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RecordError(f"{field}: {shown(found)}, expected an object")
    return found


def _require(is_right: bool, otherwise: str) -> None:
    if not is_right:
        raise RecordError(otherwise)
