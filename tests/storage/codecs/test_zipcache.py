"""ZipCache: which tokens get more bits, and values by token and channel, against loops over single numbers."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import agree, error, layout, nearest_steps, normal, raw_of

from stratakv.storage import RecordError
from stratakv.storage.codecs.registry import make_codec


def test_against_loops() -> None:
    """Ten of sixteen tokens have 16 steps and the others 4; a key channel's are over the same extent, a token's values
    over its own, divided by the channel's root."""
    shape = layout(2, 16, 24)
    numbers = normal(shape).astype(np.float32).astype(np.float64)
    numbers[:, 0] *= np.linspace(1, 2, 16)[None, :, None]  # norms that differ
    expected = np.empty_like(numbers)
    for head, (keys, values) in enumerate(numbers):
        order = np.argsort([np.linalg.norm(key) for key in keys])
        bits = {int(token): 4 if rank < 10 else 2 for rank, token in enumerate(order)}
        for channel in range(24):
            for token in range(16):
                extent = np.array([keys[:, channel].min(), keys[:, channel].max(), keys[token, channel]])
                expected[head, 0, token, channel] = nearest_steps(extent, bits[token])[2]
        root = np.sqrt(np.abs(values).max(0))
        for token in range(16):
            expected[head, 1, token] = root * nearest_steps(values[token] / root, bits[token])
    agree(error(make_codec("zipcache", shape), numbers, shape) + numbers, expected, 0.02)


def test_tokens_of_little_norm_come_back_closer() -> None:
    shape = layout()
    numbers = normal(shape)
    numbers[:, 0, :6] *= 1.5
    off = np.square(error(make_codec("zipcache", shape), numbers, shape)).mean((0, 3))
    assert (off[:, 6:].max(1) < off[:, :6].min(1) / 4).all(), "their keys and their values"


def test_a_large_channel_of_values_does_not_spoil_the_others() -> None:
    """Where a token's channels had one scale the other channels would be lost."""
    shape = layout()
    numbers = normal(shape)
    numbers[:, 1, :, 5] *= 100
    off = np.delete(error(make_codec("zipcache:salient=100", shape), numbers, shape)[:, 1], 5, 2)
    plain = np.delete(error(make_codec("int4", shape), numbers, shape)[:, 1], 5, 2)
    assert np.square(off).mean() < np.square(plain).mean() / 16


@pytest.mark.parametrize("salient", [0, 1, 100])
def test_all_or_none_may_be_salient(salient: int) -> None:
    shape = layout()
    off = error(make_codec(f"zipcache:salient={salient}", shape), normal(shape), shape)
    assert np.isfinite(off).all()
    with pytest.raises(ValueError, match="salient is 0 to 100 percent, not 101"):
        make_codec("zipcache:salient=101", shape)


def test_a_payload_with_more_salient_tokens_than_there_are_is_refused() -> None:
    shape = layout()
    codec = make_codec("zipcache", shape)
    payload = bytearray(codec.encode(raw_of(normal(shape), shape)))
    payload[2:4] = b"\xff\xff"  # behind two bytes of settings: the first head's tokens
    with pytest.raises(RecordError, match=r"^payload: as many salient tokens as zipcache does not write"):
        codec.decode(memoryview(bytes(payload)), np.zeros(shape.page_bytes, np.uint8))
