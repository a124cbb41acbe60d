"""KIVI: groups and steps against loops over single numbers, and outliers where it expects them."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import agree, error, layout, nearest_steps, normal

from stratakv.storage.codecs.registry import make_codec


@pytest.mark.parametrize("bits", [2, 4])
def test_keys_by_channel_and_values_by_token(bits: int) -> None:
    shape = layout(1, 40, 64)
    numbers = normal(shape).astype(np.float16).astype(np.float64)
    expected = np.empty_like(numbers)
    for channel in range(64):
        for tokens in (slice(0, 20), slice(20, 40)):  # at most 32, equally long
            expected[0, 0, tokens, channel] = nearest_steps(numbers[0, 0, tokens, channel], bits)
    for token in range(40):
        for channels in (slice(0, 32), slice(32, 64)):
            expected[0, 1, token, channels] = nearest_steps(numbers[0, 1, token, channels], bits)
    found = error(make_codec(f"kivi:bits={bits}", shape), numbers, shape) + numbers
    agree(found, expected, 0.01)


def test_outliers_in_a_keys_channel_and_in_a_values_token_spoil_nothing_else() -> None:
    shape = layout()
    numbers = normal(shape)
    numbers[:, 0, :, 5] *= 1000
    numbers[:, 1, 7, :32] *= 1000
    off = np.abs(error(make_codec("kivi", shape), numbers, shape))
    assert np.delete(off[:, 0], 5, 2).max() < 1.5
    assert np.delete(off[:, 1], 7, 1).max() < 1.5
    assert off[:, 1, 7, 32:].max() < 1.5, "the other half of the token's channels has a scale of its own"


def test_four_bits_are_closer_than_two() -> None:
    shape, two, four = (
        layout(),
        *(error(make_codec(f"kivi:bits={bits}", layout()), normal(layout()), layout()) for bits in (2, 4)),
    )
    assert np.square(four).mean() < np.square(two).mean() / 16
    assert make_codec("kivi", shape).payload_bytes < make_codec("kivi:bits=4", shape).payload_bytes


def test_settings_it_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"codec 'kivi:bits=3': bits is 2 or 4, not 3"):
        make_codec("kivi:bits=3", layout())
