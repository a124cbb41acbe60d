"""Records: the bytes of one LMDB value.

    offset  size  field
    0       4     magic  b"SKVR"
    4       2     version (1)
    6       1     kind    0 page, 1 session, 2 state
    7       1     codec   0 raw, 1 zstd, 2 int4, 3 int8, 4 kivi,
                  5 rotatekv, 6 logquant, 7 zipcache, 8 kvquant (pages); 0 otherwise
    8       16    fingerprint of model, dtype, RoPE and page layout
    24      18    key this record was stored under: (layer, chain), chain and two zeros for states,
                  zeros for sessions
    42      2     number of tokens n; 0 for sessions and states
    44      8     raw bytes after decoding; payload bytes otherwise
    52      8     payload bytes
    60      8     xxh3-64 of everything else in the record
    68      4n    token ids, little-endian uint32
    68+4n   …     payload, exactly to the record's end

All integers little-endian. Forbidden, each with what it stops: trailing bytes (smuggled data), a
fingerprint or key that differs from the one asked for (another model's KV, a swapped page), token
ids that differ from the caller's (a hash collision), sizes that disagree (a decompression bomb).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from ..errors import LaterVersionError, RecordError
from ..page import CHAIN_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

VERSION = 1
LAST_CODEC = 8
"""The highest number of any codec in `storage/codecs`."""
PAGE, SESSION, STATE = 0, 1, 2
KEY_BYTES = 2 + CHAIN_BYTES
_MAGIC = b"SKVR"
_HEAD = struct.Struct("<4sHBB16s18sHQQ")
_SUM = struct.Struct("<Q")
_FIXED = _HEAD.size + _SUM.size
_OURS = VERSION.to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class Record:
    """A verified record. `ids` and `payload` borrow the buffer it was read from."""

    kind: int
    codec: int
    raw_bytes: int
    ids: memoryview
    """The record's token ids, little-endian uint32."""
    payload: memoryview


def pack(
    kind: int,
    fingerprint: bytes,
    key: bytes,
    payload: bytes,
    *,
    codec: int = 0,
    raw_bytes: int | None = None,
    tokens: np.ndarray | memoryview | None = None,
) -> bytes:
    """Make one record's bytes. `tokens` are numbers, or a record's `ids`."""
    ids = _ids(tokens)
    raw = len(payload) if raw_bytes is None else raw_bytes
    head = _HEAD.pack(
        _MAGIC, VERSION, kind, codec, fingerprint, key.ljust(KEY_BYTES, b"\0")[:KEY_BYTES],
        len(ids) // 4, raw, len(payload),
    )  # fmt: skip
    return b"".join((head, _SUM.pack(_checksum(head, ids, payload)), ids, payload))


def _ids(tokens: np.ndarray | memoryview | None) -> bytes:
    if tokens is None:
        return b""
    return tokens.tobytes() if isinstance(tokens, memoryview) else tokens.astype("<u4", copy=False).tobytes()


def repack(found: Record, fingerprint: bytes, key: bytes) -> bytes:
    """Make the same record for another folder's fingerprint."""
    return pack(
        found.kind, fingerprint, key, bytes(found.payload), codec=found.codec, raw_bytes=found.raw_bytes,
        tokens=found.ids,
    )  # fmt: skip


def length(buffer: memoryview | bytes) -> int:
    """The length in bytes that the record beginning with `buffer` states; 0 if that cannot be told."""
    if len(buffer) < _HEAD.size:
        return 0
    *_, count, _, size = _HEAD.unpack(buffer[: _HEAD.size])
    return int(_FIXED + 4 * count + size)


def record_bytes(payload_bytes: int, num_tokens: int) -> int:
    """Bytes of a page's record."""
    return int(_FIXED + 4 * num_tokens + payload_bytes)


def checksum(buffer: memoryview | bytes) -> bytes:
    """The 8 bytes of the checksum in the record that begins with `buffer`; fewer if it is cut off."""
    return bytes(buffer[_HEAD.size : _FIXED])


def beginnings(codecs: Iterable[int] = range(LAST_CODEC + 1)) -> frozenset[bytes]:
    """The sets of eight bytes with which records of this version can begin, if it knows these codecs."""
    kinds = [bytes((PAGE, codec)) for codec in codecs] + [bytes((kind, 0)) for kind in (SESSION, STATE)]
    return frozenset(_MAGIC + VERSION.to_bytes(2, "little") + kind for kind in kinds)


def later_field(buffer: memoryview | bytes, known: frozenset[bytes]) -> str:
    """The field that shows a later version to have written the record, of whatever kind: `version` or `codec`; empty if
    none does.

    Args:
        known: from `beginnings`.
    """
    if len(buffer) < _FIXED or bytes(buffer[:8]) in known:
        return ""
    _, _, kind, _, fingerprint, key, *_ = _HEAD.unpack(buffer[: _HEAD.size])
    try:
        unpack(buffer, kind, fingerprint, key)
    except LaterVersionError:
        return "version"
    except RecordError:
        return ""
    return "codec" if kind == PAGE else ""


def unverified(buffer: memoryview | bytes) -> bytes:
    """The payload of a session's or state's record as it stands, which may be damaged: trust none of it."""
    return bytes(buffer[_FIXED:])


def unpack(buffer: memoryview | bytes, kind: int, fingerprint: bytes, key: bytes) -> Record:
    """Verify a record. Raises RecordError or LaterVersionError, which name the field that is wrong."""
    view = memoryview(buffer)
    if len(view) < _FIXED:
        raise RecordError(f"length: {len(view)} bytes, a record has at least {_FIXED}")
    head = view[: _HEAD.size]
    magic, version, found_kind, codec, found_print, found_key, count, raw, size = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise RecordError(f"magic: {magic!r}, expected {_MAGIC!r}")
    if version > VERSION and not _is_ours_flipped(view, version):
        raise LaterVersionError(f"version: {version}, this program reads {VERSION}")
    if version != VERSION:
        raise RecordError(f"version: {version}, this program reads {VERSION}")
    if len(view) != _FIXED + 4 * count + size:
        raise RecordError(f"length: {len(view)} bytes, header says {_FIXED + 4 * count + size}")
    ids, payload = view[_FIXED : _FIXED + 4 * count], view[_FIXED + 4 * count :]
    (stored_sum,) = _SUM.unpack(view[_HEAD.size : _FIXED])
    if stored_sum != _checksum(head, view[_FIXED:]):
        raise RecordError("checksum: the record's bytes changed since they were written")
    if found_kind != kind:
        raise RecordError(f"kind: {found_kind}, expected {kind}")
    if found_print != fingerprint:
        raise RecordError(f"fingerprint: {found_print.hex()}, expected {fingerprint.hex()}")
    if found_key != key.ljust(KEY_BYTES, b"\0")[:KEY_BYTES]:
        raise RecordError(f"key: {found_key.hex()}, expected {key.hex()}")
    if kind != PAGE:
        _require_plain(codec, raw, size, count)
    return Record(found_kind, codec, raw, ids, payload)


def _is_ours_flipped(view: memoryview, version: int) -> bool:
    """True if the version is ours but for one flipped bit, and the checksum fits with ours: that is damage. Where a
    later version keeps its checksum is not known."""
    if (version ^ VERSION).bit_count() != 1:
        return False
    (stored_sum,) = _SUM.unpack(view[_HEAD.size : _FIXED])
    return bool(stored_sum == _checksum(view[:4], _OURS, view[6 : _HEAD.size], view[_FIXED:]))


def _require_plain(codec: int, raw: int, size: int, count: int) -> None:
    """Raise RecordError unless the record has neither codec nor tokens: only pages have those."""
    if codec:
        raise RecordError(f"codec: {codec}, expected 0")
    if raw != size:
        raise RecordError(f"raw bytes: {raw}, the payload has {size}")
    if count:
        raise RecordError(f"tokens: {count}, expected none")


def _checksum(*parts: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()
