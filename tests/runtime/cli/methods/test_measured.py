"""Bytes are those of the objects themselves."""

from __future__ import annotations

import pytest

from stratakv.runtime.cli.methods.measured import KV_BYTES, Bytes, measured
from stratakv.runtime.cli.methods.method import KINDS, Kind

INDEX, PLACEMENT, CODEC = KINDS


@pytest.mark.parametrize(
    ("kind", "name", "token"),
    [
        (INDEX, "bounds", 2 * 256 / 16),
        (INDEX, "oracle", 256),
        (INDEX, "a2ats", 2),
        (INDEX, "window", 0),
        (PLACEMENT, "h2o", 4),
        (CODEC, "raw", KV_BYTES),
        (CODEC, "int8", 256 + 4 * 128 / 16 + 4 * 2),
    ],
)
def test_bytes_of_a_token(kind: Kind, name: str, token: float) -> None:
    assert measured(kind, name) == Bytes(token, 0)


def test_what_a_state_takes_whatever_the_length_stands_apart() -> None:
    codes, anchors = 6, 2 * 128 / 64
    found = measured(INDEX, "spectral")
    assert found.token == codes + anchors
    assert found.fixed > 1e5
