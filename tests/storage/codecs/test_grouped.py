"""int8 and int4: how far off they may be, what they refuse, and the bytes they write."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from codecs_under_test import DTYPES, layout, numbers_of, raw_of, there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.storage.codecs.grouped import GroupedCodec
from stratakv.storage.codecs.int4 import Int4Codec
from stratakv.storage.codecs.int8 import Int8Codec

CODECS: list[type[GroupedCodec]] = [Int8Codec, Int4Codec]
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-10}
"""Of a number to its dtype, relative."""


def allowed(numbers: np.ndarray, most: int, dtype: str, steps: int) -> np.ndarray:
    """Half a scale for each of `[.., n]`, where runs of at most `most` share one, and what fp16 and the dtype round."""
    length = numbers.shape[-1]
    width = -(-length // -(-length // most))
    bound = np.empty_like(numbers)
    for start in range(0, length, width):
        run = numbers[..., start : start + width]
        largest, least = run.max(-1, keepdims=True), run.min(-1, keepdims=True)
        scale = (largest - least + np.maximum(np.abs(least) * 2.0**-10, 2.0**-24)) / steps
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
    codec=st.sampled_from(CODECS),
)
def test_no_number_is_off_by_more_than_half_a_scale(
    codec: type[GroupedCodec], seed: int, heads: int, tokens: int, channels: int, dtype: str, size: float,
    shift: float, kind: str,
) -> None:  # fmt: skip
    rng, shape = np.random.default_rng(seed), layout(heads, tokens, channels, dtype)
    numbers = rng.standard_normal((heads, 2, tokens, channels))
    if kind == "constant":
        numbers[:] = numbers.flat[0]
    elif kind == "two":
        numbers = np.sign(numbers)
    elif kind == "heavy":
        numbers = np.clip(numbers**5, -60, 60)
    raw = raw_of(numbers * size + shift, shape)
    exact, found = numbers_of(raw, shape), numbers_of(there_and_back(codec(shape), raw), shape)
    off, steps = np.abs(found - exact), 2**codec.bits - 1
    assert (off[:, 0] <= allowed(exact[:, 0].swapaxes(1, 2), 32, dtype, steps).swapaxes(1, 2)).all()
    assert (off[:, 1] <= allowed(exact[:, 1], 64, dtype, steps)).all()


@pytest.mark.parametrize("codec", CODECS)
def test_outliers_spoil_only_their_own_group(codec: type[GroupedCodec]) -> None:
    """A key channel that is always large, and a token whose value is: others keep their small scales."""
    shape = layout()
    numbers = np.random.default_rng(0).standard_normal((2, 2, 16, 64))
    numbers[:, 0, :, 5] *= 1000
    numbers[:, 1, 7] *= 1000
    raw = raw_of(numbers, shape)
    off = np.abs(numbers_of(there_and_back(codec(shape), raw), shape) - numbers_of(raw, shape))
    finest = 15 / (2**codec.bits - 1)
    assert off[:, 0, :, 5].max() > 20 * finest
    assert off[:, 1, 7].max() > 20 * finest
    assert np.delete(off[:, 0], 5, 2).max() < 0.3 * finest
    assert np.delete(off[:, 1], 7, 1).max() < 0.3 * finest


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_numbers_come_back(codec: type[GroupedCodec], dtype: str) -> None:
    """Exactly, if fp16 has them."""
    shape = layout(dtype=dtype)
    for number in (0.0, 1.0, -3.5, 1024.0):
        raw = raw_of(np.full((2, 2, 16, 64), number), shape)
        np.testing.assert_array_equal(there_and_back(codec(shape), raw), raw)


def test_the_bytes_are_those_on_disk() -> None:
    """Steps of 1 from 0 and of 0.5 from -2, in one head of two tokens and two channels."""
    shape = layout(1, 2, 2)
    keys, values = np.array([[0, 0.5], [15, 8.0]]), np.array([[-2.0, 5.5], [-2.0, -2.0]])
    raw = raw_of(np.stack([keys, values])[None], shape)
    assert Int4Codec(shape).encode(raw) == (
        struct.pack("<4e", 1.0, 0.5, 0.0, 0.5) + struct.pack("<4e", 0.5, 0.0, -2.0, -2.0) + bytes.fromhex("00ff f0 00")
    )
    np.testing.assert_array_equal(there_and_back(Int4Codec(shape), raw), raw)


def test_the_bytes_of_int8_are_those_on_disk() -> None:
    """Steps of 1/16 from 0 and from -2, of a byte each."""
    shape = layout(1, 2, 2)
    keys, values = np.array([[0, 255 / 16], [255 / 16, 0]]), np.array([[-2.0, 223 / 16], [-2.0, -2.0]])
    raw = raw_of(np.stack([keys, values])[None], shape)
    assert Int8Codec(shape).encode(raw) == (
        struct.pack("<4e", 1 / 16, 1 / 16, 0.0, 0.0)
        + struct.pack("<4e", 1 / 16, 0.0, -2.0, -2.0)
        + bytes.fromhex("00ffff00 00ff0000")
    )
    np.testing.assert_array_equal(there_and_back(Int8Codec(shape), raw), raw)


@pytest.mark.parametrize(
    ("codec", "dtype", "share"),
    [
        (Int4Codec, "bfloat16", 0.329), (Int4Codec, "float16", 0.329), (Int4Codec, "float32", 0.165),
        (Int8Codec, "bfloat16", 0.579), (Int8Codec, "float16", 0.579), (Int8Codec, "float32", 0.290),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [64, 128])
def test_what_it_saves(codec: type[GroupedCodec], dtype: str, share: float, channels: int) -> None:
    shape = layout(3, 16, channels, dtype)
    assert codec(shape).payload_bytes < share * shape.page_bytes


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 40_000.0])
def test_pages_it_cannot_hold_are_refused(codec: type[GroupedCodec], number: float, dtype: str) -> None:
    shape = layout(dtype=dtype)
    numbers = np.zeros((2, 2, 16, 64))
    assert codec(shape).accepts(raw_of(numbers, shape))
    numbers[1, 1, 3, 7] = number
    raw = raw_of(numbers, shape)
    assert not codec(shape).accepts(raw)
    with pytest.raises(ValueError, match=f"^{codec.name} holds finite numbers up to 32768"):
        codec(shape).encode(raw)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_stay_finite(codec: type[GroupedCodec], dtype: str) -> None:
    shape = layout(dtype=dtype)
    raw = raw_of(np.where(np.random.default_rng(0).random((2, 2, 16, 64)) < 0.5, 2.0**15, -(2.0**15)), shape)
    np.testing.assert_allclose(numbers_of(there_and_back(codec(shape), raw), shape), numbers_of(raw, shape), rtol=0.01)


@pytest.mark.parametrize("codec", CODECS)
def test_pages_of_keys_alone_are_as_the_keys_of_others(codec: type[GroupedCodec]) -> None:
    both, keys = layout(dtype="bfloat16"), replace(layout(dtype="bfloat16"), value_dim=48)
    page = numbers_of(raw_of(np.random.default_rng(3).standard_normal((2, 2, 16, 64)), both), both)
    found = there_and_back(codec(keys), raw_of(page[:, 0], keys))
    expected = numbers_of(there_and_back(codec(both), raw_of(page, both)), both)
    np.testing.assert_array_equal(found, raw_of(expected[:, 0], keys))
