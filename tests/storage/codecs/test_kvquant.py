"""KVQuant: code points, outliers and groups against loops over single numbers, and what each is for."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import PROFILE, agree, error, layout, normal, raw_of

from stratakv.storage import RecordError
from stratakv.storage.codecs.code_points import learn_points
from stratakv.storage.codecs.kvquant import num_outliers, scaled
from stratakv.storage.codecs.registry import make_codec


def heavy(pages: int, seed: int = 0) -> np.ndarray:
    """Numbers with heavy tails, `[n, S, G, L, D]`."""
    return np.random.default_rng(seed).standard_t(4, (pages, 2, 2, 16, 64)).astype(np.float32)


def by_hand(numbers: np.ndarray, points: np.ndarray, is_key: bool) -> np.ndarray:
    """One head's side `[L, D]`: the numbers farthest from their group's median as they are, each other one at the
    nearest point between the ends of what is left."""
    groups = numbers.T if is_key else numbers
    far = np.array([np.abs(group - np.median(group)) for group in groups])
    bound = np.sort(far.reshape(-1))[-num_outliers(far.size)]
    found = groups.copy()
    for group, out, off in zip(groups, found, far, strict=True):
        rest = np.where(off >= bound, np.median(group), group)
        middle, half = (rest.max() + rest.min()) / 2, (rest.max() - rest.min()) / 2
        for place in np.flatnonzero(off < bound):
            out[place] = middle + half * min(points, key=lambda point: abs(middle + half * point - group[place]))
    return found.T if is_key else found


def test_against_loops() -> None:
    shape = layout()
    numbers = heavy(1)[0].swapaxes(0, 1).astype(np.float64)
    points = np.sort(np.random.default_rng(0).uniform(-1, 1, (2, 8)), -1).astype(np.float16)
    codec = make_codec("kvquant", shape, {"kvquant.3": points})
    expected = [
        [by_hand(side, points[at].astype(np.float64), at == 0) for at, side in enumerate(head)] for head in numbers
    ]
    agree(error(codec, numbers, shape) + numbers, np.array(expected), 0.02)


def test_learned_points_beat_even_ones_on_heavy_tails() -> None:
    """On pages that were not learned from, for keys and for values, at every number of bits. With outliers kept apart
    errors are far below those of plain codes of as many bits."""
    shape, learned = layout(), learn_points(heavy(40, seed=1), np.ones((2, 64), np.float32))
    numbers = heavy(1)[0].swapaxes(0, 1)
    for bits, gain in ((2, 1.2), (3, 1.07), (4, 1.07)):
        spec = f"kvquant:bits={bits}"
        points = learned[f"kvquant.{bits}"]
        assert points.shape == (2, 2**bits)
        assert (np.diff(points, axis=1) > 0).all()
        ours, even = (
            np.square(error(make_codec(spec, shape, of), numbers, shape)).mean((0, 2, 3))
            for of in (learned, {f"kvquant.{bits}": np.linspace([-1, -1], [1, 1], 2**bits, axis=1).astype(np.float16)})
        )
        assert (gain * ours < even).all(), (bits, ours, even)
        if bits != 3:
            kivi = np.square(error(make_codec(f"kivi:bits={bits}", shape), numbers, shape)).mean()
            assert ours.mean() < 0.75 * kivi


def test_outliers_come_back_and_spoil_nothing() -> None:
    shape = layout()
    numbers = normal(shape)
    numbers[:, :, 3, 9] = 1000
    off = np.abs(error(make_codec("kvquant", shape, PROFILE), numbers, shape))
    assert (off[:, :, 3, 9] == 0).all()
    assert off.max() < 0.6


def test_errors_of_keys_weigh_by_their_channels_queries() -> None:
    """Points lie where the channel is whose queries are large, not where most numbers are."""
    pages = heavy(20)
    pages[:, 0, :, :, 0] = np.where(pages[:, 0, :, :, 0] > 0, 0.9, -0.9) * 2  # a channel of two numbers only
    loud = np.full((2, 64), 1e-6, np.float32)
    loud[:, 0] = 1
    spread = learn_points(pages, loud)["kvquant.2"][0]
    assert np.abs(np.abs(spread) - 1).min() < 0.01
    assert np.abs(np.abs(learn_points(pages, np.ones((2, 64), np.float32))["kvquant.2"][0]) - 1).min() > 0.1


def test_numbers_are_scaled_to_their_groups() -> None:
    keys, values = (scaled(side, heavy(3)[:, side]) for side in (0, 1))
    assert (keys.half.shape, values.half.shape) == ((3, 2, 1, 64), (3, 2, 16, 1))
    for each in (keys, values):
        assert np.abs(each.even).max() <= 1
        assert each.places.shape == (3, 2, 10)


def test_an_outlier_outside_the_page_is_refused() -> None:
    shape = layout(1, 16, 33)  # 528 numbers, their places in 10 bits
    codec = make_codec("kvquant", shape, PROFILE)
    payload = bytearray(codec.encode(raw_of(normal(shape), shape)))
    first = 2 + 2 * 2 * 8 + 4 * 33 + 4 * 16  # settings, points, and tables of keys and of values
    payload[first : first + 2] = b"\xff\xff"
    with pytest.raises(RecordError, match=r"^payload: an outlier outside the page"):
        codec.decode(memoryview(bytes(payload)), np.zeros(shape.page_bytes, np.uint8))
