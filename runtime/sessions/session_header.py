"""A session's header and page chains, read without torch and without trust.

A record's checksum says that its bytes are those that were written, not who wrote them: a store folder may
come from elsewhere. So everything is checked before it is used, and what is wrong is a RecordError that
names the field. `session_check` and `layers.stored` check what only a model can tell (vocabulary, shapes of KV).
"""

from __future__ import annotations

import json
import math
from io import BytesIO
from itertools import pairwise
from typing import Any

from ...storage import CHAIN_BYTES, LaterVersionError, RecordError
from ..untrusted.json_files import Limits
from ..untrusted.numbers import is_count, shown
from ..untrusted.safetensors_header import TensorEntry, read_header

VERSION = 1
LIMITS = Limits(16 << 20, None)
"""The bounds of a session's header, which has the transcript. Parsed, it may take twenty times as much."""
ROLES = frozenset({"user", "assistant", "document"})
_LATEST = 1e11
"""The latest time that a date can be made of, in seconds since 1970."""
_MAX_INDEX = 4096


def header_of(payload: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a session's header, with `num_tokens`, and its page chains. Raises RecordError, LaterVersionError."""
    packed = read_header(BytesIO(payload), len(payload), RecordError, LIMITS)
    header = _object(_parsed(packed.metadata.get("stratakv", "")), "header")
    _check_version(header.get("version"))
    tensors = packed.tensors()
    pages = header.get("num_pages", -1)
    tokens, chains = _length(tensors, "tokens", "I64"), _length(tensors, "chains", "U8")
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
    start = packed.num_bytes + tensors["chains"].begin
    borders = range(start, start + CHAIN_BYTES * pages + 1, CHAIN_BYTES)
    return header | {"num_tokens": tokens, "reach": reach}, [bytes(payload[a:b]) for a, b in pairwise(borders)]


def _check_version(version: object) -> None:
    """Check the version before anything else is looked at: it is not known what a later version means by the rest."""
    told = f"version: has format {shown(version)}, this program reads {VERSION}"
    if is_count(version) and version > VERSION:
        raise LaterVersionError(told)
    _require(is_count(version) and version == VERSION, told)  # True is 1, too


def is_time(value: object) -> bool:
    """True if a date can be made of it."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value < _LATEST


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"header: not JSON ({error})") from error


def _length(tensors: dict[str, TensorEntry], name: str, dtype: str) -> int:
    """The length of a one-dimensional tensor."""
    entry = tensors.get(name)
    if entry is None or entry.dtype != dtype or len(entry.shape) != 1:
        raise RecordError(f"{name}: {shown(entry)}, expected a list of {dtype}")
    return entry.shape[0]


def _check_notes(notes: dict[str, Any]) -> None:
    """Raise RecordError unless the notes are such as a conversation leaves (`chat.Chat.save`)."""
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
