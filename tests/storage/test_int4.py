"""The 4-bit codec: how far off it may be, what it refuses, and the bytes it writes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.storage import PageLayout, RecordError
from stratakv.storage.codecs import Int4Codec

DTYPES = ["float32", "bfloat16", "float16"]
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-10}
"""Of a number to its dtype, relative."""


def layout(heads: int = 2, tokens: int = 16, channels: int = 64, dtype: str = "float32") -> PageLayout:
    return PageLayout(num_heads=heads, page_size=tokens, head_dim=channels, dtype=dtype)


def raw_of(numbers: np.ndarray, shape: PageLayout) -> np.ndarray:
    page = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).to(getattr(torch, shape.dtype))
    return page.reshape(-1).view(torch.uint8).numpy().copy()


def numbers_of(raw: np.ndarray, shape: PageLayout) -> np.ndarray:
    """float64 `[G, 2, L, D]`."""
    flat = torch.from_numpy(raw).view(getattr(torch, shape.dtype)).double().numpy()
    return flat.reshape(shape.num_heads, 2, shape.page_size, shape.head_dim)


def there_and_back(raw: np.ndarray, shape: PageLayout) -> np.ndarray:
    codec, out = Int4Codec(shape), np.full(shape.page_bytes, 0xAA, dtype=np.uint8)
    payload = codec.encode(raw)
    assert len(payload) == codec.payload_bytes
    codec.decode(memoryview(payload), out)
    return out


def allowed(numbers: np.ndarray, most: int, dtype: str) -> np.ndarray:
    """Half a scale for each of `[.., n]`, where runs of at most `most` share one, and what fp16 and the dtype round."""
    length = numbers.shape[-1]
    width = -(-length // -(-length // most))
    bound = np.empty_like(numbers)
    for start in range(0, length, width):
        run = numbers[..., start : start + width]
        largest, least = run.max(-1, keepdims=True), run.min(-1, keepdims=True)
        scale = (largest - least + np.maximum(np.abs(least) * 2.0**-10, 2.0**-24)) / 15
        half = np.maximum(scale * (1 + 2.0**-10), scale + 2.0**-24) / 2
        reach = np.maximum(np.abs(largest), np.abs(least)) + scale
        bound[..., start : start + width] = half + reach * (ROUNDING[dtype] + 2.0**-20)
    return bound


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.sampled_from([1, 3]),
    tokens=st.sampled_from([1, 5, 16, 32, 33, 70]),
    channels=st.sampled_from([1, 3, 64, 65, 80, 130]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-6, 1.0, 300.0]),
    shift=st.sampled_from([0.0, -7.0, 3000.0]),
    kind=st.sampled_from(["normal", "constant", "two", "heavy"]),
)
def test_no_number_is_off_by_more_than_half_a_scale(
    seed: int, heads: int, tokens: int, channels: int, dtype: str, size: float, shift: float, kind: str
) -> None:
    rng, shape = np.random.default_rng(seed), layout(heads, tokens, channels, dtype)
    numbers = rng.standard_normal((heads, 2, tokens, channels))
    if kind == "constant":
        numbers[:] = numbers.flat[0]
    elif kind == "two":
        numbers = np.sign(numbers)
    elif kind == "heavy":
        numbers = np.clip(numbers**5, -60, 60)
    raw = raw_of(numbers * size + shift, shape)
    exact, found = numbers_of(raw, shape), numbers_of(there_and_back(raw, shape), shape)
    off = np.abs(found - exact)
    assert (off[:, 0] <= allowed(exact[:, 0].swapaxes(1, 2), 32, dtype).swapaxes(1, 2)).all()
    assert (off[:, 1] <= allowed(exact[:, 1], 64, dtype)).all()


def test_outliers_spoil_only_their_own_group() -> None:
    """A key channel that is always large, and a token whose value is: others keep their small scales."""
    shape = layout()
    numbers = np.random.default_rng(0).standard_normal((2, 2, 16, 64))
    numbers[:, 0, :, 5] *= 1000
    numbers[:, 1, 7] *= 1000
    raw = raw_of(numbers, shape)
    off = np.abs(numbers_of(there_and_back(raw, shape), shape) - numbers_of(raw, shape))
    assert off[:, 0, :, 5].max() > 20
    assert off[:, 1, 7].max() > 20
    assert np.delete(off[:, 0], 5, 2).max() < 0.3
    assert np.delete(off[:, 1], 7, 1).max() < 0.3


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_numbers_come_back(dtype: str) -> None:
    """Exactly, if fp16 has them."""
    shape = layout(dtype=dtype)
    for number in (0.0, 1.0, -3.5, 1024.0):
        raw = raw_of(np.full((2, 2, 16, 64), number), shape)
        np.testing.assert_array_equal(there_and_back(raw, shape), raw)


def test_the_bytes_are_those_on_disk() -> None:
    """Steps of 1 from 0 and of 0.5 from -2, in one head of two tokens and two channels."""
    shape = layout(1, 2, 2)
    keys, values = np.array([[0, 0.5], [15, 8.0]]), np.array([[-2.0, 5.5], [-2.0, -2.0]])
    raw = raw_of(np.stack([keys, values])[None], shape)
    payload = Int4Codec(shape).encode(raw)
    assert payload == (
        struct.pack("<4e", 1.0, 0.5, 0.0, 0.5) + struct.pack("<4e", 0.5, 0.0, -2.0, -2.0) + bytes.fromhex("00ff f0 00")
    )
    np.testing.assert_array_equal(there_and_back(raw, shape), raw)


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.329), ("float16", 0.329), ("float32", 0.165)])
@pytest.mark.parametrize("channels", [64, 128])
def test_what_it_saves(dtype: str, share: float, channels: int) -> None:
    shape = layout(3, 16, channels, dtype)
    assert Int4Codec(shape).payload_bytes < share * shape.page_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 40_000.0])
def test_pages_it_cannot_hold_are_refused(number: float, dtype: str) -> None:
    shape = layout(dtype=dtype)
    numbers = np.zeros((2, 2, 16, 64))
    codec = Int4Codec(shape)
    assert codec.accepts(raw_of(numbers, shape))
    numbers[1, 1, 3, 7] = number
    raw = raw_of(numbers, shape)
    assert not codec.accepts(raw)
    with pytest.raises(ValueError, match="finite numbers up to 32768"):
        codec.encode(raw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_stay_finite(dtype: str) -> None:
    shape = layout(dtype=dtype)
    raw = raw_of(np.where(np.random.default_rng(0).random((2, 2, 16, 64)) < 0.5, 2.0**15, -(2.0**15)), shape)
    np.testing.assert_allclose(numbers_of(there_and_back(raw, shape), shape), numbers_of(raw, shape), rtol=0.01)


def damaged(place: int, number: float) -> bytes:
    payload = bytearray(Int4Codec(layout()).encode(raw_of(np.zeros((2, 2, 16, 64)), layout())))
    struct.pack_into("<e", payload, place, number)
    return bytes(payload)


LAST_TABLE_ENTRY = 4 * (2 * 64 + 2 * 16) - 2


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(damaged(0, 0.0)[:-1], id="truncated"),
        pytest.param(damaged(0, 0.0) + b"\0", id="trailing-byte"),
        pytest.param(damaged(0, 0.0) * 2, id="twice"),
        pytest.param(damaged(0, float("nan")), id="nan-scale"),
        pytest.param(damaged(0, float("inf")), id="infinite-scale"),
        pytest.param(damaged(0, -1.0), id="negative-scale"),
        pytest.param(damaged(0, 40_000.0), id="huge-scale"),
        pytest.param(damaged(LAST_TABLE_ENTRY, float("nan")), id="nan-minimum"),
        pytest.param(damaged(LAST_TABLE_ENTRY, -40_000.0), id="huge-minimum"),
    ],
)
def test_what_it_did_not_write_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError, match=r"^payload"):
        Int4Codec(layout()).decode(memoryview(payload), np.zeros(layout().page_bytes, dtype=np.uint8))


def test_another_size_is_refused() -> None:
    payload = damaged(0, 0.0)
    for size in (0, layout().page_bytes - 4, 2 * layout().page_bytes):
        with pytest.raises(RecordError, match=r"^payload"):
            Int4Codec(layout()).decode(memoryview(payload), np.zeros(size, dtype=np.uint8))
