"""Checks of what was stored of a layer besides its pages, before anything works with it: it may come from anywhere.

A check that fails raises a RecordError which names the field, and nothing was changed by then. Numbers in range but
wrong cannot be told from right ones: whoever can write a store decides what a model remembers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from io import BytesIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...retrieval.index import Index
from ...retrieval.stored import Geometry, check_stored
from ...storage import DiskTier, LaterVersionError, PageLayout, RecordError
from ..untrusted.safetensors_header import read_header
from .base import LayerKV

logger = logging.getLogger(__name__)


def read_tensors(payload: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    header = read_header(BytesIO(payload), len(payload), RecordError)
    header.tensors()
    try:
        return safetensors.torch.load(payload), header.metadata
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise RecordError(f"tensors: {str(error)[:200]}") from error


def check_window(
    field: str, kv: Tensor | None, window: int, keep: int, num_tokens: int, layout: PageLayout, dtype: torch.dtype
) -> None:
    """Raise RecordError unless `kv` can be what a sliding layer holds after `num_tokens` tokens.

    Args:
        window: tokens that the layer attends to. keep: the most that it holds.
    """
    count = kv.shape[2] if kv is not None and kv.dim() == 4 else 0
    if not min(window - 1, num_tokens) <= count <= min(keep, num_tokens):
        raise RecordError(f"{field}: of {count} tokens, not what a window of {window} holds after {num_tokens}")
    check_kv(field, kv, count, layout, dtype)


def check_kv(field: str, kv: Tensor | None, count: int, layout: PageLayout, dtype: torch.dtype) -> None:
    """Raise RecordError unless `kv` is K and V `[S, G, count, D]` of that dtype, all of it finite."""
    shape = (layout.sides, layout.num_heads, count, layout.head_dim)
    if kv is None or kv.dtype != dtype or tuple(kv.shape) != shape:
        found = "nothing" if kv is None else f"{kv.dtype} {tuple(kv.shape)}"
        raise RecordError(f"{field}: {found}, expected {dtype} {shape}")
    if not bool(kv.isfinite().all()):
        raise RecordError(f"{field}: has a value that is not finite")


def is_sound_state(index: Index, layer: int, tensors: dict[str, Tensor], of: Geometry) -> bool:
    """Whether `tensors` can be the state of the layer's `index` in a sequence like `of`; if not, the log says so."""
    try:
        check_stored(tensors, index.stored(of, tensors))
    except ValueError as error:
        logger.warning("layer %d: the index's state is not used, it is built again: %s", layer, error)
        return False
    return True


def stored_state(
    disk: DiskTier | None, chain: bytes, layers: Iterable[LayerKV], num_tokens: int
) -> tuple[dict[str, Tensor], str] | None:
    """Read the tensors that layers left (`LayerKV.leave`) under `chain`, and the identity of the index that learned.

    Returns None if there are none, or if one of `layers` cannot go on from them, which the log says then.

    Args:
        chain: name of the page that ends a prefix of `num_tokens` tokens.
    """
    try:
        payload = disk.get_state(chain) if disk is not None else None
        if payload is None:
            return None
        tensors, metadata = read_tensors(payload)
        for layer in layers:
            layer.check_left(tensors, num_tokens)
    except LaterVersionError as error:
        logger.info("state %s was written by a later version of stratakv (%s): not used", chain.hex(), error)
        return None
    except RecordError as error:
        logger.warning("state %s is damaged (%s): not used", chain.hex(), error)
        return None
    return tensors, metadata.get("index", "")


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
