"""A check that a session's record fits the model that is to go on from it. Raises RecordError, which names the
field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...storage import RecordError
from ..layers.stored import read_tensors
from ..untrusted.numbers import shown
from .session_header import header_of

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.sequence import Sequence


def read_session(
    engine: Engine, sequence: Sequence, payload: bytes
) -> tuple[dict[str, Any], list[bytes], dict[str, Tensor]]:
    """Read header, chains and tensors, with which to fill the empty `sequence`. States of indexes are not looked at."""
    header, chains = header_of(payload)
    tensors, _ = read_tensors(payload)
    count, size = header["num_tokens"], sequence.page_size
    if count // size != len(chains) or len(set(chains)) < len(chains):
        raise RecordError(f"num_pages: {count} tokens have {count // size} whole pages, all different")
    if not engine.model.rope.is_reach(header["reach"], count):
        raise RecordError(f"reach: {header['reach']}, which this model has none of for {count} tokens")
    _check_ids(engine, tensors, header["notes"].get("unfed", []))
    expected = {"tokens", "origins", "chains"}
    for layer, cache in enumerate(sequence.layers):
        expected |= cache.check_exported(f"layer.{layer}.", tensors, count)
    for name in sorted(tensors.keys() - expected):
        raise RecordError(f"tensor {shown(name)}: this model has none of that name")
    return header, chains, tensors


def _check_ids(engine: Engine, tensors: dict[str, Tensor], unfed: list[int]) -> None:
    tokens, origins = tensors["tokens"], tensors.get("origins")
    vocabulary = engine.model.inner.embed_tokens.num_embeddings
    if any(token >= vocabulary for token in unfed):
        raise RecordError(f"notes.unfed: a token id that a vocabulary of {vocabulary} has not")
    if len(unfed) > engine.model.max_positions:
        raise RecordError(f"notes.unfed: {len(unfed)} tokens")
    if bool(((tokens < 0) | (tokens >= vocabulary)).any()):
        raise RecordError(f"tokens: a token id that a vocabulary of {vocabulary} has not")
    if origins is None or origins.dtype != torch.uint8 or origins.shape != tokens.shape or bool((origins > 1).any()):
        raise RecordError("origins: not a 0 or 1 for each token")
