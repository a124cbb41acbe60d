"""Codecs: how a page's bytes look on an edge between tiers.

A codec is one file with a class, one line in `CODECS` and one line in the tests' list. It encodes
`page_bytes` raw bytes to fewer and decodes them into a buffer of exactly that size; it never
allocates more than the size it was promised. `raw` and `zstd` give back every bit, `int4` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..page import PageLayout
from .int4 import Int4Codec
from .raw import RawCodec
from .zstd import ZstdCodec


class Codec(Protocol):
    """Encode and decode one page. Instances belong to one thread."""

    code: int
    """The codec's number in a record header. Never reused."""

    def encode(self, raw: np.ndarray) -> bytes:
        """`raw` is uint8 `[page_bytes]`."""
        ...

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        """Fill `out` (uint8 `[page_bytes]`). Raises RecordError if the payload does not fit it."""
        ...


CODECS: dict[str, Callable[[PageLayout], Codec]] = {"int4": Int4Codec, "raw": RawCodec, "zstd": ZstdCodec}


def make_codec(name: str, layout: PageLayout) -> Codec:
    """A codec for pages of `layout`. Raises ValueError for a name that is not in `CODECS`."""
    if name not in CODECS:
        raise ValueError(f"codec is one of {sorted(CODECS)}, not {name!r}")
    return CODECS[name](layout)


__all__ = ["CODECS", "Codec", "Int4Codec", "RawCodec", "ZstdCodec", "make_codec"]
