"""What was saved of a layer besides its pages, looked at before it is worked with: its bytes may come from anywhere.

What a check raises is a RecordError that names a field; nothing was touched by then. Numbers in range but
wrong cannot be told from right ones: whoever can write a store decides what a model remembers.
"""

from __future__ import annotations

import logging
from io import BytesIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...retrieval.stored import Geometry, check_stored
from ...storage import DiskTier, LaterVersionError, RecordError
from ..untrusted.safetensors_header import read_header
from .sliding import SlidingLayer
from .tiered import TieredLayer

logger = logging.getLogger(__name__)


def read_tensors(payload: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    header = read_header(BytesIO(payload), len(payload), RecordError)
    header.tensors()
    try:
        return safetensors.torch.load(payload), header.metadata
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise RecordError(f"tensors: {str(error)[:200]}") from error


def check_window(cache: SlidingLayer, field: str, kv: Tensor | None, num_tokens: int, dtype: torch.dtype) -> None:
    """Unless `kv` may be what a sliding layer holds after so many tokens."""
    count = kv.shape[2] if kv is not None and kv.dim() == 4 else 0
    if not min(cache.window - 1, num_tokens) <= count <= min(cache.keep, num_tokens):
        raise RecordError(f"{field}: of {count} tokens, not what a window of {cache.window} holds after {num_tokens}")
    check_kv(cache, field, kv, count, dtype)


def check_kv(cache: TieredLayer | SlidingLayer, field: str, kv: Tensor | None, count: int, dtype: torch.dtype) -> None:
    """Unless `kv` are finite K and V `[2, G, count, D]`."""
    shape = (2, cache.layout.num_heads, count, cache.layout.head_dim)
    if kv is None or kv.dtype != dtype or tuple(kv.shape) != shape:
        found = "nothing" if kv is None else f"{kv.dtype} {tuple(kv.shape)}"
        raise RecordError(f"{field}: {found}, expected {dtype} {shape}")
    if not bool(kv.isfinite().all()):
        raise RecordError(f"{field}: has a value that is not finite")


def is_sound_index(cache: TieredLayer, tensors: dict[str, Tensor], num_tokens: int, repeats: int) -> bool:
    """Whether `tensors` may be the state of the layer's index after so many sealed tokens; if not, says so in the log.

    Args:
        repeats: query heads per KV head.
    """
    of = Geometry(cache.workspace.span[0, :, :0], num_tokens, repeats)
    try:
        check_stored(tensors, cache.index.stored(of, tensors))
    except ValueError as error:
        logger.warning("layer %d: the index's state is not used, it is built again: %s", cache.layer, error)
        return False
    return True


def stored_state(
    disk: DiskTier | None, chain: bytes, sliding: list[SlidingLayer], num_tokens: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], str] | None:
    """What `Engine` left under `chain`, after so many tokens, and the identity of the index that learned; None if there
    is nothing, or if `sliding` layers cannot go on from it, which the log says then."""
    try:
        payload = disk.get_state(chain) if disk is not None else None
        if payload is None:
            return None
        tensors, metadata = read_tensors(payload)
        for cache in sliding:
            check_window(cache, f"layer {cache.layer}", tensors.get(f"{cache.layer}"), num_tokens, dtype)
    except LaterVersionError as error:
        logger.info("state %s was written by a later version of stratakv (%s): not used", chain.hex(), error)
        return None
    except RecordError as error:
        logger.warning("state %s is damaged (%s): not used", chain.hex(), error)
        return None
    return tensors, metadata.get("index", "")


def tensors_under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
