"""Sessions: a conversation in the store, so that a restart costs no prefill.

A session is one record, published in one transaction after all of its pages are durable: the token
log, the chain of page names, the unsealed tails, the sliding layers' state and the index states.
The payload is a safetensors file; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..storage import CapacityError, DiskTier, ForkedError, RecordError, StorageError, StorageFullError
from ..storage.session_name import MAX_BYTES, is_session_name
from .engine import Engine
from .errors import SessionError
from .layer_cache import TieredLayer
from .sequence import Sequence
from .session_check import read_session
from .session_header import MAX_HEADER_BYTES, VERSION
from .sliding_layer import SlidingLayer
from .state_check import is_sound_index, tensors_under

logger = logging.getLogger(__name__)


def check_name(name: str) -> str:
    """Raises SessionError unless `name` is 1 to 200 printable bytes without slashes."""
    if not is_session_name(name):
        raise SessionError(f"a session name is 1 to {MAX_BYTES} printable bytes without slashes, not {name!r}")
    return name


def save(engine: Engine, sequence: Sequence, name: str, notes: dict[str, Any]) -> None:
    """Publish `sequence` under `name`, replacing an earlier session of that name.

    Args:
        notes: JSON-serialisable, returned by `load` as it is.

    Raises:
        SessionError: there is no disk tier, or it is full; an earlier session stays as it was.
        ForkedError: in a child of the process that opened the store.
    """
    disk = _disk(engine)
    check_name(name)
    tensors: dict[str, Tensor] = {
        "tokens": torch.from_numpy(sequence.tokens.astype(np.int64)),
        "origins": torch.from_numpy(sequence.origins.copy()),
        "chains": torch.frombuffer(bytearray(b"".join(sequence.chains)) or bytearray(1), dtype=torch.uint8),
    }
    for layer, cache in enumerate(sequence.layers):
        tensors |= {f"layer.{layer}.{part}": t.cpu().contiguous() for part, t in cache.export().items()}
    header = {
        "version": VERSION, "index": engine.index_identity, "num_pages": len(sequence.chains), "notes": notes,
        "saved_at": time.time(),
    }  # fmt: skip
    payload = safetensors.torch.save(tensors, {"stratakv": json.dumps(header)})
    if (length := int.from_bytes(payload[:8], "little")) > MAX_HEADER_BYTES:
        raise SessionError(
            f"session {name!r} was not saved: its transcript takes {length} bytes, at most {MAX_HEADER_BYTES} are kept"
        )
    try:
        engine.store.flush()
        try:
            disk.put_session(name, payload)
        except StorageFullError as error:
            if not (error.is_at_cap and engine.store.make_room(len(payload))):
                raise
            disk.put_session(name, payload)
    except ForkedError:
        raise
    except StorageError as error:
        raise SessionError(f"session {name!r} was not saved: {error}") from error


def load(engine: Engine, name: str) -> tuple[Sequence, dict[str, Any], int]:
    """The sequence saved as `name`, its notes, and how many tokens had to be computed again (0 when
    every page is still stored).

    Raises SessionError if there is no such session for this model, or its record is damaged.
    """
    disk = _disk(engine)
    check_name(name)
    try:
        payload = disk.get_session(name)
    except RecordError as error:
        raise _damaged(name, error) from error
    if payload is None:
        known = ", ".join(disk.session_names()) or "none"
        raise SessionError(f"no session {name!r} for this model and these settings; saved: {known}")
    sequence = engine.new_sequence()
    try:
        header, chains, tensors = read_session(engine, sequence, payload)
        computed = _fill(engine, sequence, header, chains, tensors)
    except RecordError as error:
        sequence.close()
        raise _damaged(name, error) from error
    except BaseException:
        sequence.close()
        raise
    disk.session_used(name)
    return sequence, header["notes"], computed


def names(disk: DiskTier) -> list[str]:
    return disk.session_names()


def _fill(
    engine: Engine, sequence: Sequence, header: dict[str, Any], chains: list[bytes], tensors: dict[str, Tensor]
) -> int:
    tokens = tensors["tokens"].numpy().astype(np.uint32)
    origins = tensors["origins"].numpy()
    size = sequence.page_size
    pages = tokens[: len(chains) * size].reshape(-1, size)
    known = engine.store.num_known(chains, engine.model.tiered)
    if known < len(chains):
        return _recompute_rest(engine, sequence, tokens, origins, chains[:known])

    def is_sound(cache: TieredLayer, parts: dict[str, Tensor]) -> bool:
        repeats = engine.model.num_heads // engine.model.num_kv_heads
        return is_sound_index(cache, tensors_under("index.", parts), len(chains) * size, repeats)

    for layer, cache in enumerate(sequence.layers):
        parts = tensors_under(f"layer.{layer}.", tensors)
        if isinstance(cache, SlidingLayer):
            cache.restore(parts["window"], len(tokens))
        elif header["index"] == engine.index_identity and chains and is_sound(cache, parts):
            cache.restore(parts, chains, pages)
        else:
            cache.adopt(chains, pages)
            cache.set_tail(parts["tail"])
    sequence.log(tokens, 0)
    sequence.origins[:] = origins
    sequence.chains = list(chains)
    return 0


def _recompute_rest(
    engine: Engine, sequence: Sequence, tokens: np.ndarray, origins: np.ndarray, chains: list[bytes]
) -> int:
    """Some pages are gone: keep the stored prefix, prefill what follows it."""
    if any(isinstance(cache, SlidingLayer) for cache in sequence.layers):
        chains = []
    if len(tokens) > engine.model.max_positions:
        raise SessionError(
            f"the session's missing pages cannot be computed again: {len(tokens)} tokens, the model was trained for "
            f"{engine.model.max_positions}"
        )
    kept = len(chains) * sequence.page_size
    for cache in sequence.layers:
        if chains and isinstance(cache, TieredLayer):
            cache.adopt(chains, tokens[:kept].reshape(-1, sequence.page_size))
    sequence.log(tokens[:kept], 0)
    sequence.origins[:] = origins[:kept]
    sequence.chains = list(chains)
    try:
        engine.prefill(sequence, tokens[kept:], want_logits=False)
    except CapacityError as error:
        raise SessionError(f"the session's missing pages cannot be computed again: {error}") from error
    return len(tokens) - kept


def _damaged(name: str, error: RecordError) -> SessionError:
    return SessionError(
        f"session {name!r} is damaged ({error}); to remove it: stratakv sessions rm {shlex.quote(name)}"
    )


def _disk(engine: Engine) -> DiskTier:
    if engine.store.disk is None:
        raise SessionError("sessions need the disk tier; it is switched off (disk_gb=0)")
    return engine.store.disk
