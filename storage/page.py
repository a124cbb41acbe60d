"""Pages and their names.

A *page* is a fixed run of `page_size` tokens of one layer: all KV heads, K and V side by side,
laid out head-major as `[G, 2, L, D]` so that one head's keys are contiguous. Keys are stored with their
positions applied, so that reading them takes no work. The store sees only `page_bytes` opaque bytes made of
equal `parts`.

A page's *key* is `(layer, chain)`, where `chain` hashes every token from the start of the sequence
up to the page's end, rooted in nothing but those tokens: two conversations that begin with the same
document name the same pages. Pages whose KV was produced by sparse decoding depend on the retrieval
settings too; their link in the chain is salted with those settings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    @property
    def item_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def page_bytes(self) -> int:
        return 2 * self.num_heads * self.page_size * self.head_dim * self.item_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes that K and V of one token take in one layer."""
        return self.page_bytes // self.page_size


def next_chain(previous: bytes, tokens: np.ndarray, salt: bytes = b"") -> bytes:
    """The chain hash after a page of `tokens` (uint32). Stable across processes and platforms."""
    digest = hashlib.blake2b(previous, digest_size=CHAIN_BYTES, salt=salt[:16])
    digest.update(tokens.astype("<u4", copy=False).tobytes())
    return digest.digest()


def page_key(layer: int, chain: bytes) -> bytes:
    """Ordered byte encoding: pages of one layer sort together."""
    return layer.to_bytes(2, "big") + chain
