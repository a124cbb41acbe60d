"""Records: the bytes on disk, and that no change of them goes unseen (hostile ones: `tests/hostile/`)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import FINGERPRINT, KEY, PAYLOAD, TOKENS, by_hand

from stratakv.storage import PageLayout, RecordError
from stratakv.storage.codecs import CODECS, LOSSLESS, make_codec
from stratakv.storage.disk import record


def packed() -> bytes:
    return record.pack(record.PAGE, FINGERPRINT, KEY, PAYLOAD, codec=1, raw_bytes=1024, tokens=TOKENS)


def unpack(buffer: bytes, kind: int = record.PAGE, fingerprint: bytes = FINGERPRINT, key: bytes = KEY) -> record.Record:
    return record.unpack(buffer, kind, fingerprint, key)


def test_golden_bytes() -> None:
    """The format on disk: docstring, program and this literal must agree."""
    assert packed() == by_hand()
    assert packed().hex() == (
        "534b565201000001"
        "6465666768696a6b6c6d6e6f70717273"
        "0007000102030405060708090a0b0c0d0e0f"
        "030000040000000000000f00000000000000"
        "c51bb8ba39d74576"
        "01000000ffffffff50c30000"
        "6b65797320616e642076616c756573"
    )


def test_unpack_returns_what_was_packed() -> None:
    found = unpack(packed())
    assert (found.kind, found.codec, found.raw_bytes) == (record.PAGE, 1, 1024)
    assert bytes(found.ids) == TOKENS.astype("<u4").tobytes()
    assert bytes(found.payload) == PAYLOAD


def test_a_session_has_no_key_and_no_tokens() -> None:
    found = unpack(record.pack(record.SESSION, FINGERPRINT, b"", PAYLOAD), record.SESSION, key=b"")
    assert bytes(found.payload) == PAYLOAD
    assert len(found.ids) == 0
    assert found.raw_bytes == len(PAYLOAD)


def test_every_flipped_bit_is_found() -> None:
    good = packed()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            unpack(bytes(bad))


def test_every_truncation_is_found() -> None:
    good = packed()
    for length in range(len(good)):
        with pytest.raises(RecordError, match=r"^length"):
            unpack(good[:length])


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
    codec, size = make_codec(name, layout_of(4, 1 << 17)), 1 << 17
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
    numbers = {name: make_codec(name, layout_of(2, 1024)).code for name in CODECS}
    assert numbers == {"raw": 0, "zstd": 1, "int4": 2, "int8": 3}


def test_byte_planes_save_space_on_floats() -> None:
    """What the codec exists for: sign and exponent of neighbours repeat."""
    floats = np.random.default_rng(0).standard_normal(32768, dtype=np.float32)
    bf16 = (floats.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    assert len(make_codec("zstd", layout_of(2, 65536)).encode(bf16)) < 0.8 * bf16.nbytes
    assert len(make_codec("zstd", layout_of(4, 131072)).encode(floats.view(np.uint8))) < 0.95 * floats.nbytes


def test_unknown_codec_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"raw.*zstd.*gzip"):
        make_codec("gzip", layout_of(4, 1024))
