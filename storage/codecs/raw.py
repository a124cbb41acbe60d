"""The identity codec."""

from __future__ import annotations

import numpy as np

from ..errors import RecordError
from ..page import PageLayout


class RawCodec:
    """Stores a page's bytes as they are."""

    code = 0

    def __init__(self, layout: PageLayout) -> None:
        del layout

    def accepts(self, raw: np.ndarray) -> bool:
        return True

    def encode(self, raw: np.ndarray) -> bytes:
        return raw.tobytes()

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        if len(payload) != out.nbytes:
            raise RecordError(f"payload: {len(payload)} bytes, expected {out.nbytes}")
        out[:] = np.frombuffer(payload, dtype=np.uint8)
