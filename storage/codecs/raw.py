"""A page's bytes as they are."""

from __future__ import annotations

import numpy as np

from ..errors import RecordError
from ..page import PageLayout
from .codec import NoOptions, Profile


class RawCodec:
    """Idea   nothing is encoded.
    For    disks faster than a core decodes: every bit back.
    State  the page.
    Cost   a copy.
    """

    name, code = "raw", 0
    Options = NoOptions
    needs_profile = ""
    keeps_first = False

    def __init__(self, layout: PageLayout, options: NoOptions | None = None, profile: Profile | None = None) -> None:
        self.payload_bytes = layout.page_bytes

    def accepts(self, raw: np.ndarray) -> bool:
        return True

    def encode(self, raw: np.ndarray) -> bytes:
        return raw.tobytes()

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        if len(payload) != out.nbytes:
            raise RecordError(f"payload: {len(payload)} bytes, expected {out.nbytes}")
        out[:] = np.frombuffer(payload, dtype=np.uint8)
