"""Lossless and smaller; a frame that is not the page's own is refused before it is opened."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from stratakv.storage import PageLayout
from stratakv.storage.codecs.zstd import ZstdCodec
from stratakv.storage.errors import RecordError


def layout(dtype: str = "float32") -> PageLayout:
    return PageLayout(num_heads=2, page_size=16, head_dim=32, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_to_the_bit(dtype: str) -> None:
    codec = ZstdCodec(layout(dtype))
    numbers = np.random.default_rng(0).normal(size=layout(dtype).page_bytes // 4).astype(np.float32)
    page = numbers.view(np.uint8)
    if dtype == "bfloat16":
        page = np.repeat(numbers.view(np.uint16)[1::2], 2).view(np.uint8)  # the upper halves
    payload, out = codec.encode(page), np.empty_like(page)
    assert len(payload) < 0.97 * len(page)
    codec.decode(memoryview(payload), out)
    assert np.array_equal(out, page)


SIZE = layout().page_bytes
WHOLE = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(SIZE))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no frame",
        WHOLE[:-1],
        WHOLE + b"x",
        WHOLE + WHOLE,
        zstandard.ZstdCompressor(write_checksum=True).compress(bytes(SIZE - 1)),
        zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100 * SIZE)),
        zstandard.ZstdCompressor(write_checksum=False).compress(bytes(SIZE)),
        zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(bytes(SIZE)),
        WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
    ],
    ids=["nothing", "other", "cut", "more", "two", "shorter", "longer", "unchecked", "sizeless", "checksum"],
)
def test_another_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError, match="payload: "):
        ZstdCodec(layout()).decode(memoryview(payload), np.empty(SIZE, np.uint8))
