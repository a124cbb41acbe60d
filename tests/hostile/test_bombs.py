"""Frames that would take far more memory than a page: refused before any of it is taken."""

from __future__ import annotations

import resource
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zstandard

from stratakv.storage import PageLayout, RecordError
from stratakv.storage.codecs import make_codec

LAYOUT = PageLayout(num_heads=1, page_size=16, head_dim=8, dtype="float32")
PAGE = LAYOUT.page_bytes
GIB = 1 << 30


@pytest.fixture(scope="module")
def gibibyte() -> bytes:
    """A frame of 1 GiB of zeros, in about 32 KiB."""
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj(size=GIB)
    zeros = bytes(16 << 20)
    return b"".join([*(compressor.compress(zeros) for _ in range(GIB // len(zeros))), compressor.flush()])


def reheaded(frame: bytes, size: int, window_log: int) -> bytes:
    """The same blocks under a header that declares another size and window."""
    blocks = frame[zstandard.frame_header_size(frame) :]
    four_byte_size_and_checksum = 0b1000_0100
    return struct.pack("<IBBI", 0xFD2FB528, four_byte_size_and_checksum, (window_log - 10) << 3, size) + blocks


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """The process may map so many bytes more than now, and Python may allocate them; else the test fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    tracemalloc.start()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < more


def refusal(payload: bytes, page_bytes: int = PAGE) -> str:
    codec, out = make_codec("zstd", LAYOUT), np.zeros(page_bytes, dtype=np.uint8)
    with little_memory(64 << 20), pytest.raises(RecordError, match=r"^payload: ") as refused:
        codec.decode(memoryview(payload), out)
    assert not out.any()
    return str(refused.value)


def test_a_gibibyte_in_32_kib(gibibyte: bytes) -> None:
    assert len(gibibyte) < 40 << 10
    assert f"frame of {GIB} bytes" in refusal(gibibyte)


def test_a_gibibyte_that_declares_a_page(gibibyte: bytes) -> None:
    """zstd itself stops at the declared size."""
    lying = reheaded(gibibyte, PAGE, 21)
    assert zstandard.get_frame_parameters(lying).content_size == PAGE
    assert "frame of" not in refusal(lying)


def test_a_page_that_declares_a_gibibyte() -> None:
    page = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(PAGE))
    assert f"frame of {GIB} bytes" in refusal(reheaded(page, GIB, 20))


def test_a_page_that_declares_less_than_it_holds() -> None:
    page = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(2 * PAGE))
    refusal(reheaded(page, PAGE, 20))


def test_a_window_of_2_gib() -> None:
    page = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(PAGE))
    assert f"window {2 << 30}" in refusal(reheaded(page, PAGE, 31))


def test_the_largest_window_allowed_is_8_mib() -> None:
    page = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(PAGE))
    out = np.ones(PAGE, dtype=np.uint8)
    make_codec("zstd", LAYOUT).decode(memoryview(reheaded(page, PAGE, 23)), out)
    assert not out.any()
    assert f"window {16 << 20}" in refusal(reheaded(page, PAGE, 24))


def test_a_bomb_behind_an_honest_frame(gibibyte: bytes) -> None:
    page = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(PAGE))
    refusal(page + gibibyte)


def test_a_skippable_frame_of_4_gib() -> None:
    refusal(struct.pack("<II", 0x184D2A50, 2**32 - 1))
