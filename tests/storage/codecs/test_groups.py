"""Codes of any number of bits come back, the first one in a byte's lowest bits."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.storage.codecs.groups import packed, packed_bytes, quantised, restored, unpacked


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_what_is_packed_is_unpacked(bits: int) -> None:
    for count in (1, 7, 8, 24, 1000):
        codes = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
        found = packed(codes, bits)
        assert len(found) == packed_bytes(count, bits) == -(-count * bits // 8)
        whole = sum(int(code) << place * bits for place, code in enumerate(codes))
        assert found.tobytes() == whole.to_bytes(len(found), "little")
        np.testing.assert_array_equal(unpacked(found, count, bits), codes)


def test_groups_reach_from_the_least_number_to_the_largest() -> None:
    """Steps of 1 from 0, of 2 from 10, and of a group of equal numbers."""
    numbers = np.array([[0, 3, 1.4, 10, 16, 13.2, 5, 5, 5]], dtype=np.float32)
    codes, scale, least = quantised(numbers, 3, 2)
    np.testing.assert_array_equal(codes, [[0, 3, 1, 0, 3, 2, 0, 0, 0]])
    np.testing.assert_array_equal(scale, [[1, 2, 0]])
    np.testing.assert_array_equal(least, [[0, 10, 5]])
    np.testing.assert_array_equal(restored(codes, scale, least), [[0, 3, 1, 10, 16, 14, 5, 5, 5]])
