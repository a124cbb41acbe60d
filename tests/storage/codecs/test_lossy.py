"""The contract of every lossy codec: what comes back, how large a payload is, what is refused, and what a forged
payload cannot do. One line per codec in `codecs_under_test.LOSSY`."""

from __future__ import annotations

import numpy as np
import pytest
from codecs_under_test import DTYPES, LOSSY, PROFILE, layout, normal, numbers_of, raw_of, relative, there_and_back

from stratakv.storage import PageLayout, RecordError
from stratakv.storage.codecs import CODECS, LOSSLESS
from stratakv.storage.codecs.codec import NamedCodec
from stratakv.storage.codecs.lossy import LossyCodec
from stratakv.storage.codecs.registry import codec_class, make_codec

SHAPES = [
    *(layout(dtype=dtype) for dtype in DTYPES),
    *(layout(heads, 16, channels, "bfloat16") for heads, channels in ((1, 256), (8, 80), (3, 96), (4, 128))),
    layout(2, 64, 64, "bfloat16"),
    layout(2, 7, 9, "float32"),
    layout(1, 16, 576, "bfloat16", sides=1),
]


def made(spec: str, shape: PageLayout) -> NamedCodec:
    return make_codec(spec, shape, PROFILE)


def test_every_lossy_codec_is_under_test() -> None:
    assert {spec.split(":")[0] for spec in LOSSY} == set(CODECS) - set(LOSSLESS)
    assert len({codec_class(name)[0].code for name in CODECS}) == len(CODECS)


@pytest.mark.parametrize("spec", LOSSY)
def test_pages_come_back_as_far_off_as_is_said(spec: str) -> None:
    """Of every shape and dtype, the same from every instance, in payloads of the size that is stated."""
    bits, most = LOSSY[spec]
    assert 8 * made(spec, SHAPES[1]).payload_bytes / normal(SHAPES[0]).size == pytest.approx(bits, abs=0.06)
    for shape in SHAPES:
        raw = raw_of(normal(shape), shape)
        found, exact = there_and_back(made(spec, shape), raw), numbers_of(raw, shape)
        assert 0 < relative(numbers_of(found, shape) - exact, exact) < (most if shape.page_size == 16 else 1.5 * most)
        np.testing.assert_array_equal(there_and_back(made(spec, shape), raw), found)


@pytest.mark.parametrize("spec", LOSSY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_it_cannot_hold_are_refused(spec: str, dtype: str) -> None:
    shape = layout(dtype=dtype)
    codec, numbers = made(spec, shape), np.zeros((2, 2, 16, 64))
    assert codec.accepts(raw_of(numbers, shape))
    assert (there_and_back(codec, raw_of(numbers, shape)) == 0).all()
    for number in (np.nan, np.inf, -np.inf, 40_000.0):
        numbers[1, 1, 3, 7] = number
        raw = raw_of(numbers, shape)
        assert not codec.accepts(raw)
        with pytest.raises(ValueError, match=f"^{codec.name} holds finite numbers up to 32768"):
            codec.encode(raw)


@pytest.mark.parametrize("spec", LOSSY)
def test_the_largest_numbers_stay_finite(spec: str) -> None:
    shape = layout(dtype="float16")
    raw = raw_of(np.sign(normal(shape)) * 2.0**15, shape)
    assert (np.abs(numbers_of(there_and_back(made(spec, shape), raw), shape)) <= 1.01 * 2.0**15).all()


@pytest.mark.parametrize("spec", LOSSY)
def test_a_payload_says_by_which_settings_it_was_written(spec: str) -> None:
    shape = layout()
    payload, outs = made(spec, shape).encode(raw_of(normal(shape), shape)), np.zeros((2, shape.page_bytes), np.uint8)
    made(spec, shape).decode(memoryview(payload), outs[0])
    made(spec.split(":")[0], shape).decode(memoryview(payload), outs[1])
    np.testing.assert_array_equal(outs[0], outs[1])


@pytest.mark.parametrize("spec", LOSSY)
def test_a_forged_payload_is_refused_or_gives_numbers(spec: str) -> None:
    """Whatever its bytes are: of another length, with settings nobody has, of random bytes, or damaged in one place."""
    shape = layout()
    codec = made(spec, shape)
    assert isinstance(codec, LossyCodec)
    good, rng = codec.encode(raw_of(normal(shape), shape)), np.random.default_rng(0)
    stamp = len(codec._stamp)
    forged = [
        b"",
        good[:-1],
        good + b"\0",
        good * 2,
        *([b"\xff" * len(good), bytes(stamp) + good[stamp:]] * (stamp > 0)),
    ]
    for payload in forged:
        with pytest.raises(RecordError, match=r"^payload: "):
            codec.decode(memoryview(payload), np.zeros(shape.page_bytes, np.uint8))
    refused = 0
    for _ in range(40):
        damaged = np.frombuffer(good, np.uint8).copy()
        some = slice(stamp, None) if rng.random() < 0.3 else rng.integers(stamp, len(good), 1)
        damaged[some] = rng.integers(0, 256, len(damaged[some]), dtype=np.uint8)
        out = np.full(shape.page_bytes, 0xAA, np.uint8)
        try:
            codec.decode(memoryview(damaged.tobytes()), out)
            assert (np.abs(numbers_of(out, shape)) <= 1.01 * 2.0**15).all()
        except RecordError:
            refused += 1
            assert (out == 0xAA).all(), "bytes of a refused page were handed out"
    assert 0 < refused < 40


def test_another_layouts_page_is_refused() -> None:
    codec = made("kivi", layout())
    payload = codec.encode(raw_of(normal(layout()), layout()))
    with pytest.raises(RecordError, match=r"^payload: "):
        codec.decode(memoryview(payload), np.zeros(64, np.uint8))
