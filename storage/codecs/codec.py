"""The waist between pages and their bytes on disk.

A codec encodes `page_bytes` raw bytes to fewer and decodes them into a buffer of exactly that size; it never
allocates more than the size it was promised. Pages in memory are always raw: no codec works between host and device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..page import PageLayout

Profile = Mapping[str, np.ndarray]
"""What `stratakv calibrate` learned about one layer, for codecs that need it: tensors by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """The settings of a codec that has none."""


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


class NamedCodec(Codec, Protocol):
    """A codec that a user can name."""

    name: str
    Options: type[Any]
    """A frozen dataclass of the codec's settings: whole numbers up to 255."""
    needs_profile: str
    """What the names of those tensors of a profile begin with that encoding takes; decoding takes none. Empty: none."""
    keeps_first: bool
    """A text's first page, whose tokens get attention from all others, is written losslessly instead."""
    payload_bytes: int
    """Bytes of a page's payload: of every page, or of zstd the usual."""

    def __init__(self, layout: PageLayout, options: Any = None, profile: Profile | None = None) -> None: ...
