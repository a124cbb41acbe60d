"""Pages and their names.

A *page* is a fixed run of `page_size` tokens of one layer: all KV heads, K and V side by side,
laid out head-major as `[G, S, L, D]` so that one head's keys are contiguous. There are S = 2 sides, keys and values,
or one: of latent attention, keys contain the values. Keys are stored with their positions applied, so that reading
them takes no work. The store sees only `page_bytes` opaque bytes made of equal `parts`.

A page's *key* is `(layer, chain)`, where `chain` hashes every token from the start of the sequence
up to the page's end, rooted in nothing but those tokens: two conversations that begin with the same
document name the same pages. Pages whose KV was produced by sparse decoding depend on the retrieval
settings too; their link in the chain is salted with those settings.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

CHAIN_BYTES = 16
ROOT = bytes(CHAIN_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageLayout:
    """Shape and dtype of a page. Part of the fingerprint: other layouts never share a store."""

    num_heads: int
    page_size: int
    head_dim: int
    dtype: str
    """Element type as torch spells it: `float32`, `bfloat16` or `float16`."""
    value_dim: int | None = None
    """A token's value is so many numbers, the last ones of its key; None: values stand beside the keys."""

    @property
    def sides(self) -> int:
        """Keys and values, or keys that contain the values."""
        return 2 if self.value_dim is None else 1

    @property
    def item_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def page_bytes(self) -> int:
        return self.sides * self.num_heads * self.page_size * self.head_dim * self.item_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes that K and V of one token take in one layer."""
        return self.page_bytes // self.page_size

    def stated(self) -> dict[str, Any]:
        """The layout as a store's identity states it: what older stores could not have differed in is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def next_chain(previous: bytes, tokens: np.ndarray, salt: bytes = b"") -> bytes:
    """The chain hash after a page of `tokens` (uint32). Stable across processes and platforms."""
    digest = hashlib.blake2b(previous, digest_size=CHAIN_BYTES, salt=salt[:16])
    digest.update(tokens.astype("<u4", copy=False).tobytes())
    return digest.digest()


def page_key(layer: int, chain: bytes) -> bytes:
    """Ordered byte encoding: pages of one layer sort together."""
    return layer.to_bytes(2, "big") + chain


def layer_of(key: bytes) -> int:
    """The layer of a page by its key."""
    return int.from_bytes(key[:2], "big")
