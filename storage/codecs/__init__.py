"""Codecs: how a page's bytes look on the disk edge.

A codec is one file with a class, one line in `CODECS` and one line in the tests' list. It encodes
`page_bytes` raw bytes to fewer and decodes them into a buffer of exactly that size; it never
allocates more than the size it was promised. `raw` and `zstd` give back every bit, the others do not.
Pages in memory are always raw: no codec works between host and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..page import PageLayout
from .int4 import Int4Codec
from .int8 import Int8Codec
from .raw import RawCodec
from .zstd import ZstdCodec


class Codec(Protocol):
    """Encode and decode one page. Any thread may use an instance."""

    code: int
    """The codec's number in a record header. Never reused."""

    def accepts(self, raw: np.ndarray) -> bool:
        """True if it can encode this page. The lossless codecs can encode any."""
        ...

    def encode(self, raw: np.ndarray) -> bytes:
        """Encode `raw` (uint8 `[page_bytes]`). Raises ValueError for a page that `accepts` refuses."""
        ...

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        """Fill `out` (uint8 `[page_bytes]`). Raises RecordError if the payload does not fit it."""
        ...


CODECS: dict[str, Callable[[PageLayout], Codec]] = {
    "raw": RawCodec,
    "zstd": ZstdCodec,
    "int8": Int8Codec,
    "int4": Int4Codec,
}
LOSSLESS = ("raw", "zstd")


def make_codec(name: str, layout: PageLayout) -> Codec:
    """A codec for pages of `layout`. Raises ValueError for a name that is not in `CODECS`."""
    if name not in CODECS:
        raise ValueError(f"codec is one of {', '.join(CODECS)}, not {name!r}")
    return CODECS[name](layout)


__all__ = ["CODECS", "LOSSLESS", "Codec", "Int4Codec", "Int8Codec", "RawCodec", "ZstdCodec", "make_codec"]
