"""LogQuant: which tokens stay exact, and what becomes of the others."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import DTYPES, agree, layout, nearest_steps, normal, numbers_of, raw_of, there_and_back

from stratakv.storage.codecs.logquant import exact_tokens
from stratakv.storage.codecs.registry import make_codec


@pytest.mark.parametrize(
    ("count", "window", "kept"),
    [
        (5, 2, [0, 1, 2, 3, 4]),  # 3 W are never reached
        (6, 2, [0, 2, 4, 5]),
        (8, 2, [0, 4, 6, 7]),
        (16, 2, [0, 12, 14, 15]),
        (9, 1, [0, 8]),
    ],
)
def test_the_rule_by_hand(count: int, window: int, kept: list[int]) -> None:
    assert exact_tokens(count, window) == kept


@pytest.mark.parametrize(("count", "window"), [(64, 4), (1000, 8), (777, 64)])
def test_exact_tokens_are_spaced_ever_wider_backwards(count: int, window: int) -> None:
    kept = exact_tokens(count, window)
    assert 2 * window <= len(kept) < 3 * window
    assert kept[-window:] == list(range(count - window, count)), "the last W are all there"
    gaps = np.diff(kept)
    assert (np.diff(gaps) <= 0).all()
    assert gaps.max() >= 8 * gaps.min()


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_tokens_come_back_to_the_bit_and_the_others_in_groups(dtype: str) -> None:
    shape = layout(2, 16, 24, dtype)
    raw = raw_of(normal(shape), shape)
    numbers, found = numbers_of(raw, shape), numbers_of(there_and_back(make_codec("logquant", shape), raw), shape)
    exact = [0, 12, 14, 15]
    np.testing.assert_array_equal(found[:, :, exact], numbers[:, :, exact])
    rest = sorted(set(range(16)) - set(exact))
    expected = np.empty((2, 2, len(rest), 24))
    for head in range(2):
        for channel in range(24):
            expected[head, 0, :, channel] = nearest_steps(numbers[head, 0, rest, channel], 2)
        for place, token in enumerate(rest):
            expected[head, 1, place] = nearest_steps(numbers[head, 1, token], 2)
    agree(found[:, :, rest], expected, 0.02)


def test_a_page_that_is_all_exact_and_settings_it_does_not_have() -> None:
    shape = layout(2, 4, 8, "bfloat16")
    raw = raw_of(normal(shape), shape)
    np.testing.assert_array_equal(there_and_back(make_codec("logquant", shape), raw), raw)
    for setting in ("window=0", "window=256", "bits=3"):
        with pytest.raises(ValueError, match=r"window is 1 to 255 tokens|bits is 2 or 4"):
            make_codec(f"logquant:{setting}", shape)
