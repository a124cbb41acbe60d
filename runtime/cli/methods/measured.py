"""What a method keeps of each token, measured on a small tensor: 8 KV heads of 128 channels in bf16, on a CPU.

    an index       bytes of its state for each stored token
    a placement    bytes of its columns for each token that is kept
    a codec        bytes of a page's payload for each token

All are per KV head of one layer, so that they stand beside the bytes of keys and values themselves (`KV_BYTES`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ....retrieval.params import IndexParams
from ....storage.page import PageLayout
from .method import Kind

HEADS, DIM, DTYPE = 8, 128, "bfloat16"
PARAMS = IndexParams()
KV_BYTES = 2 * DIM * 2
TOKENS = 512
_LAYOUT = PageLayout(num_heads=HEADS, page_size=PARAMS.page_size, head_dim=DIM, dtype=DTYPE)


class Bytes(NamedTuple):
    """Bytes per KV head."""

    token: float
    """For each token."""
    fixed: float
    """For each sequence besides, however long it is."""


@cache
def measured(kind: Kind, name: str) -> Bytes:
    """What a method takes at its default settings."""
    found, options = kind.load(name)
    return {"index": _of_index, "placement": _of_placement, "codec": _of_codec}[kind.name](found, options)


def _of_index(found: type[Any], options: Any) -> Bytes:
    """By two states, of a text and of half of it: some are fitted to as many numbers as a text has."""
    from ....retrieval.layer import IndexedLayer

    index = found(PARAMS, IndexedLayer(profile=_profile() if found.needs_profile else None), options)
    keys = _drawn()
    half, whole = (index.state_bytes(index.build(keys[:, :count])) for count in (TOKENS // 2, TOKENS))
    return Bytes(2 * (whole - half) / TOKENS / HEADS, (2 * half - whole) / HEADS)


def _of_placement(found: type[Any], options: Any) -> Bytes:
    import torch

    placement, keys = found(PARAMS, 0, options), _drawn()
    state = {**placement.start(keys[:, :0], keys[:, :0]), **placement.enter(keys, keys, torch.arange(TOKENS))}
    columns = sum(state[name].nbytes for name in placement.columns)
    return Bytes(columns / TOKENS / HEADS, (sum(one.nbytes for one in state.values()) - columns) / HEADS)


def _of_codec(found: type[Any], options: Any) -> Bytes:
    return Bytes(found(_LAYOUT, options).payload_bytes / PARAMS.page_size / HEADS, 0)


def _drawn() -> Any:
    """Random keys `[G, n, D]`."""
    import torch

    rng = torch.Generator().manual_seed(0)
    return torch.randn(HEADS, TOKENS, DIM, dtype=torch.float32, generator=rng).to(getattr(torch, DTYPE))


def _profile() -> dict[str, Any]:
    """A profile of the shapes that `stratakv calibrate` makes, but for the number of codewords. States know nothing of
    its numbers."""
    import torch

    return {
        "codewords": torch.zeros(HEADS, 16, DIM, dtype=torch.float32),
        "center": torch.zeros(HEADS, 1, DIM, dtype=torch.float32),
        "metric": torch.eye(DIM, dtype=torch.float32).expand(HEADS, DIM, DIM),
        "distance": torch.tensor(2048),
        "digest": torch.zeros(16, dtype=torch.uint8),
    }
