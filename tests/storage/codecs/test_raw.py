"""Bytes as they are."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.storage import PageLayout
from stratakv.storage.codecs.raw import RawCodec
from stratakv.storage.errors import RecordError

LAYOUT = PageLayout(num_heads=2, page_size=4, head_dim=8, dtype="float32")


def test_there_and_back() -> None:
    codec, page = RawCodec(LAYOUT), np.random.default_rng(0).integers(0, 256, LAYOUT.page_bytes, dtype=np.uint8)
    out = np.empty_like(page)
    payload = codec.encode(page)
    assert codec.accepts(page)
    assert payload == page.tobytes()
    codec.decode(memoryview(payload), out)
    assert np.array_equal(out, page)


@pytest.mark.parametrize("length", [0, LAYOUT.page_bytes - 1, LAYOUT.page_bytes + 1])
def test_another_length_is_refused(length: int) -> None:
    with pytest.raises(RecordError, match=f"payload: {length} bytes, expected {LAYOUT.page_bytes}"):
        RawCodec(LAYOUT).decode(memoryview(bytes(length)), np.empty(LAYOUT.page_bytes, np.uint8))
