"""Codecs by their names: what each gives back, from any thread, and the number it has on disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from codecs_under_test import PROFILE

from stratakv.storage import PageLayout
from stratakv.storage.codecs import CODECS, LOSSLESS, make_codec


def layout_of(item_bytes: int, page_bytes: int) -> PageLayout:
    """Pages of four tokens and that many bytes."""
    dtype = "float32" if item_bytes == 4 else "bfloat16"
    return PageLayout(num_heads=1, page_size=4, head_dim=page_bytes // (8 * item_bytes), dtype=dtype)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("size", [32, 8192, 9 << 20])
@pytest.mark.parametrize("kind", ["zeros", "noise", "normal"])
def test_codecs_are_lossless(name: str, item_bytes: int, size: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "normal":
        floats = rng.standard_normal(size // item_bytes, dtype=np.float32)
        raw = (floats.view(np.uint32) >> 16).astype("<u2") if item_bytes == 2 else floats
        raw = raw.view(np.uint8)
    else:
        raw = rng.integers(0, 256 if kind == "noise" else 1, size, dtype=np.uint8)
    codec = make_codec(name, layout_of(item_bytes, size))
    out = np.full(size, 0xAA, dtype=np.uint8)
    codec.decode(memoryview(codec.encode(raw)), out)
    np.testing.assert_array_equal(out, raw)


@pytest.mark.parametrize("name", CODECS)
def test_one_instance_serves_several_threads(name: str) -> None:
    """Pages large enough that zstd lets other threads run meanwhile."""
    codec, size = make_codec(name, layout_of(4, 1 << 17), PROFILE), 1 << 17
    pages = np.random.default_rng(0).standard_normal((4, size // 4), dtype=np.float32).view(np.uint8)

    def there_and_back(page: np.ndarray) -> np.ndarray:
        out = np.empty(size, dtype=np.uint8)
        codec.decode(memoryview(codec.encode(page)), out)
        return out

    alone = [there_and_back(page) for page in pages]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            np.testing.assert_array_equal(list(pool.map(there_and_back, pages)), alone)


def test_codec_numbers_are_those_on_disk() -> None:
    numbers = {make_codec(name, layout_of(2, 1024)).code: name for name in CODECS}
    names = ["raw", "zstd", "int4", "int8", "kivi", "rotatekv", "logquant", "zipcache", "kvquant"]
    assert numbers == dict(enumerate(names))


def test_byte_planes_save_space_on_floats() -> None:
    """What the codec exists for: sign and exponent of neighbours repeat."""
    floats = np.random.default_rng(0).standard_normal(32768, dtype=np.float32)
    bf16 = (floats.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    assert len(make_codec("zstd", layout_of(2, 65536)).encode(bf16)) < 0.8 * bf16.nbytes
    assert len(make_codec("zstd", layout_of(4, 131072)).encode(floats.view(np.uint8))) < 0.95 * floats.nbytes


def test_unknown_codec_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"raw.*zstd.*gzip"):
        make_codec("gzip", layout_of(4, 1024))
