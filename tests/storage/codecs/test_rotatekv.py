"""RotateKV: against a Hadamard matrix written out, and what turning is for."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import agree, error, layout, nearest_steps, normal

from stratakv.storage.codecs.registry import make_codec


def hadamard(size: int) -> np.ndarray:
    """Of ones and minus ones, `[size, size]`."""
    return np.array([[(-1) ** (row & column).bit_count() for column in range(size)] for row in range(size)])


@pytest.mark.parametrize(("heads", "channels", "run"), [(2, 8, 16), (3, 12, 4), (8, 16, 64), (1, 9, 1)])
def test_against_the_matrix(heads: int, channels: int, run: int) -> None:
    """Heads that are turned together, and runs of channels where they are no power of two. Values are not turned. What
    came back is turned once more, so that a tie is one number and not a run."""
    shape, bits = layout(heads, 5, channels), 4
    numbers = normal(shape).astype(np.float32).astype(np.float64)
    together = next(count for count in (4, 2, 1) if heads % count == 0)
    matrix = np.kron(np.eye(together * channels // run), hadamard(run))
    expected = np.empty_like(numbers)
    for token in range(5):
        for first in range(0, heads, together):
            some = slice(first, first + together)
            turned = matrix @ numbers[some, 0, token].reshape(-1) / run
            expected[some, 0, token] = nearest_steps(turned, bits).reshape(together, channels)
            values = nearest_steps(numbers[some, 1, token].reshape(-1), bits)
            expected[some, 1, token] = values.reshape(together, channels)
    found = error(make_codec(f"rotatekv:bits={bits}", shape), numbers, shape) + numbers
    keys = found[:, 0].reshape(-1, together, 5, channels).swapaxes(1, 2)
    found[:, 0] = (
        (keys.reshape(-1, 5, len(matrix)) @ matrix / run).reshape(keys.shape).swapaxes(1, 2).reshape(heads, 5, -1)
    )
    agree(found, expected, 0.02)


def test_a_large_channel_does_not_spoil_its_tokens_other_channels() -> None:
    """Against the same steps of the same tokens without turning: keys err a third as much, in as many bytes."""
    shape = layout(2, 16, 64)
    numbers = normal(shape)
    numbers[:, :, :, 5] *= 20  # of values as well: those are not turned
    off = np.square(error(make_codec("rotatekv:bits=4", shape), numbers, shape)).mean((0, 2, 3))
    assert off[0] < off[1] / 9


def test_it_takes_the_fewest_bytes() -> None:
    shape = layout(4, 16, 128)
    for bits in (2, 4):
        kivi, rotated = (make_codec(f"{name}:bits={bits}", shape).payload_bytes for name in ("kivi", "rotatekv"))
        assert rotated < 0.8 * kivi


def test_settings_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="bits is 2 to 4, not 8"):
        make_codec("rotatekv:bits=8", layout())
