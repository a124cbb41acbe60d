"""Sessions: a conversation in the store, so that a restart costs no prefill.

A session is one record, published in one transaction after all of its pages are durable: the token
log, the chain of page names, the unsealed tails, the sliding layers' state and the index states.
The payload is a safetensors file; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...storage import (
    CapacityError,
    DiskTier,
    ForkedError,
    LaterVersionError,
    RecordError,
    SessionChangedError,
    StorageError,
    StorageFullError,
)
from ..api.errors import SessionError
from ..engine.engine import Engine
from ..engine.sequence import Sequence
from ..layers.stored import tensors_under
from .elsewhere import bring_over, names_in_twins, place_in_twins, told_where
from .names import check_name, listed, same_name, unreadable
from .session_check import read_session
from .session_header import LIMITS, VERSION, header_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredSession:
    """The facts about the session that is saved under a name."""

    version: bytes
    num_tokens: int
    """Number of tokens; 0 if the record cannot be read."""
    saved_at: float | None
    """Time in seconds since 1970; None where it was not noted."""
    is_later: bool = False
    """True if a later version of stratakv wrote it."""

    def __str__(self) -> str:
        if self.is_later:
            return "written by a later version of stratakv"
        when = "" if self.saved_at is None else f" saved {datetime.fromtimestamp(self.saved_at):%Y-%m-%d %H:%M:%S}"
        return f"{self.num_tokens} tokens{when}"


@dataclass(slots=True)
class Seen:
    """The session of a name that a conversation knows: the one it loaded or saved there last."""

    version: bytes | None = None
    attempts: set[bytes] = field(default_factory=set)
    """Versions of writes that failed: they may have reached the disk all the same."""

    def knows(self, version: bytes) -> bool:
        return version == self.version or version in self.attempts


def stored(engine: Engine, name: str) -> StoredSession | None:
    """Look up the session saved under `name`; None if there is none. Raises SessionError: no session can be called
    that, or there is no disk tier."""
    disk, name = _disk(engine), check_name(name)
    name = same_name(name, disk.session_names()) or name
    try:
        found = disk.get_session_version(name)
        if found is None:
            return None
        header, _ = header_of(found[1])
        return StoredSession(found[0], header["num_tokens"], header.get("saved_at"))
    except RecordError as error:
        version = disk.session_version(name)
        return None if version is None else StoredSession(version, 0, None, isinstance(error, LaterVersionError))


def save(
    engine: Engine, sequence: Sequence, name: str, notes: dict[str, Any], *,
    seen: Seen | None = None, replace: bool = False,
) -> None:  # fmt: skip
    """Publish `sequence` under `name`, replacing an earlier session of that name.

    Args:
        notes: JSON-serialisable, returned by `load` as it is.
        seen: the session that the caller knows under that name; it becomes the one that is saved now. None: none.
        replace: even if the caller knows one of that name, and another one is there by now, or one that a later version
            wrote.

    Raises:
        SessionError: there is no disk tier, it is full, or another session is there than the one that the caller knows,
            or one that a later version wrote; an earlier session stays as it was.
        ForkedError: in a child of the process that opened the store.
    """
    disk, name, seen = _disk(engine), check_name(name), Seen() if seen is None else seen
    payload = _payload(engine, sequence, name, notes)
    try:
        name = same_name(name, disk.session_names()) or name
        engine.store.flush()
        _put(engine, disk, name, payload, seen, replace=replace)
    except ForkedError:
        raise
    except StorageError as error:
        seen.attempts.add(disk.version_of(payload))
        raise SessionError(f"session {name!r} was not saved: {error}") from error


def _payload(engine: Engine, sequence: Sequence, name: str, notes: dict[str, Any]) -> bytes:
    tensors: dict[str, Tensor] = {
        "tokens": torch.from_numpy(sequence.tokens.astype(np.int64)),
        "origins": torch.from_numpy(sequence.origins.copy()),
        "chains": torch.frombuffer(bytearray(b"".join(sequence.chains)) or bytearray(1), dtype=torch.uint8),
    }
    with engine.turn():
        for layer, cache in enumerate(sequence.layers):
            tensors |= {f"layer.{layer}.{part}": t.cpu().contiguous() for part, t in cache.export().items()}
    header = {
        "version": VERSION, "index": engine.index_identity, "num_pages": len(sequence.chains), "notes": notes,
        "reach": sequence.past.reach,
        "saved_at": time.time(), "id": secrets.token_hex(8),
    }  # fmt: skip
    payload = safetensors.torch.save(tensors, {"stratakv": json.dumps(header)})
    if (length := int.from_bytes(payload[:8], "little")) > LIMITS.size:
        raise SessionError(
            f"session {name!r} was not saved: its transcript takes {length} bytes, at most {LIMITS.size} are kept"
        )
    return payload


def _put(engine: Engine, disk: DiskTier, name: str, payload: bytes, seen: Seen, *, replace: bool) -> None:
    """Store it over a session that may be replaced; log it if that session was not seen before."""
    while True:
        found = stored(engine, name)
        is_new = found is not None and not seen.knows(found.version)
        if found is not None and is_new and found.is_later and not replace:
            raise SessionError(
                f"session {name!r} was not saved: one of that name is there that was written by a later version of "
                "stratakv; save under another name, or with replace=True"
            )
        if found is not None and is_new and seen.version is not None and not replace:
            raise SessionError(
                f"session {name!r} was not saved: after this conversation loaded or saved it, somebody else saved "
                f"another one under that name ({found}); save under another name, or with replace=True"
            )
        try:
            version = _put_once(engine, disk, name, payload, () if found is None else (found.version,))
            break
        except SessionChangedError:
            continue  # somebody saved between the look and the write: look again
    seen.version, seen.attempts = version, set()
    if is_new and not replace:
        logger.warning("session %r takes the place of another one of that name: %s", name, found)
    if (place := place_in_twins(disk, name)) is not None:
        logger.warning("another session %r of this model stays in %s", name, place)


def _put_once(engine: Engine, disk: DiskTier, name: str, payload: bytes, only_over: Collection[bytes]) -> bytes:
    try:
        return disk.put_session(name, payload, only_over)
    except StorageFullError as error:
        if not (error.is_at_cap and engine.store.make_room(len(payload))):
            raise
        return disk.put_session(name, payload, only_over)


def load(engine: Engine, name: str, *, seen: Seen | None = None) -> tuple[Sequence, dict[str, Any], int]:
    """Load the sequence saved as `name`, its notes, and how many tokens had to be computed again (0 when every page is
    still stored).

    Args:
        seen: becomes the session that was loaded.

    Raises SessionError if there is no such session for this model, its record is damaged, or a later version wrote it.
    """
    disk, name = _disk(engine), check_name(name)
    try:
        name, version, payload = _found(engine, disk, name)
    except RecordError as error:
        raise unreadable(name, disk.folder, error) from error
    sequence = engine.new_sequence()
    try:
        header, chains, tensors = read_session(engine, sequence, payload)
        sequence.past = engine.pasts.new(header["reach"])
        computed = _fill(engine, sequence, header, chains, tensors)
    except RecordError as error:
        sequence.close()
        raise unreadable(name, disk.folder, error) from error
    except BaseException:
        sequence.close()
        raise
    disk.session_used(name)
    if seen is not None:
        seen.version = version
    return sequence, header["notes"], computed


def _found(engine: Engine, disk: DiskTier, name: str) -> tuple[str, bytes, bytes]:
    """The name it is stored under, its version and its payload. Raises RecordError."""
    called = same_name(name, disk.session_names())
    if called is None:
        try:
            bring_over(disk, name, engine.model.tiered, engine.store.make_room)
        except (StorageFullError, SessionChangedError) as error:
            raise SessionError(f"session {name!r} cannot be brought here from another folder: {error}") from error
        called = same_name(name, disk.session_names())
    found = None if called is None else disk.get_session_version(called)
    if called is None or found is None:
        raise SessionError(
            f"no session {name!r} for this model and these settings; {listed(name, disk.session_names())}"
            f"{told_where(disk, name)}"
        )
    return called, *found


def names(disk: DiskTier) -> list[str]:
    """The names of all sessions that `load` finds, in order."""
    return sorted({*disk.session_names(), *names_in_twins(disk)})


def _fill(
    engine: Engine, sequence: Sequence, header: dict[str, Any], chains: list[bytes], tensors: dict[str, Tensor]
) -> int:
    """Fill the empty `sequence`. Returns how many tokens had to be computed again."""
    tokens, origins = tensors["tokens"].numpy().astype(np.uint32), tensors["origins"].numpy()
    total = len(tokens)
    with engine.turn():
        known = engine.store.num_known(chains, engine.model.tiered)
        if known == len(chains):
            _take_over(sequence, tokens, chains, tensors, has_state=header["index"] == engine.index_identity)
            kept = total
        else:
            _check_window(engine, total)
            in_pages = all(layer.is_paged for layer in sequence.layers)
            kept = _adopt(sequence, tokens, chains[:known] if in_pages else [])
        sequence.restore(tokens[:kept], origins[:kept], chains[: kept // sequence.page_size])
    if kept < total:
        try:
            engine.prefill(sequence, tokens[kept:], want_logits=False)
        except CapacityError as error:
            raise SessionError(f"the session's missing pages cannot be computed again: {error}") from error
    return total - sequence.num_from_store


def _take_over(
    sequence: Sequence, tokens: np.ndarray, chains: list[bytes], tensors: dict[str, Tensor], *, has_state: bool
) -> None:
    """All pages are there: every layer is as it was saved."""
    pages = tokens[: len(chains) * sequence.page_size].reshape(-1, sequence.page_size)
    for layer, cache in enumerate(sequence.layers):
        parts = tensors_under(f"layer.{layer}.", tensors)
        cache.restore(parts, chains, pages, len(tokens), has_state=has_state)


def _adopt(sequence: Sequence, tokens: np.ndarray, chains: list[bytes]) -> int:
    """Some pages are gone: every layer keeps the stored prefix. Returns how many tokens that has."""
    kept = len(chains) * sequence.page_size
    for cache in sequence.layers if chains else ():
        cache.adopt(chains, tokens[:kept].reshape(-1, sequence.page_size), kept, {})
    return kept


def _check_window(engine: Engine, num_tokens: int) -> None:
    if num_tokens > engine.model.max_positions:
        raise SessionError(
            f"the session's missing pages cannot be computed again: {num_tokens} tokens, the model was trained for "
            f"{engine.model.max_positions}"
        )


def _disk(engine: Engine) -> DiskTier:
    if engine.store.disk is None:
        raise SessionError(
            "sessions need the disk tier; it is switched off (disk_gb=0), or the store had no room for it at the start"
        )
    return engine.store.disk
