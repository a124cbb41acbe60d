"""When pages become approximate: never while the disk keeps up, and then only as many as it takes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from codecs_under_test import PROFILE
from half_pages import INT4, KEYS, LAYOUT, LOSSY, NUMBERS, PAGES, TEXT, ZSTD, Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.storage import page_key
from stratakv.storage.codecs import CODECS, LOSSLESS, make_codec
from stratakv.storage.codecs.compression import (
    AdaptiveCompression,
    OneCodec,
    balanced_share,
    is_lossy,
    make_compression,
    usual_ratio,
)
from stratakv.storage.codecs.int4 import Int4Codec
from stratakv.storage.codecs.registry import codec_names


class Simulation:
    """Steps that compute and then read all pages, each as the codec chosen for it at present wrote it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.compression = AdaptiveCompression(LAYOUT, clock=self.clock)
        self.out = np.empty(LAYOUT.page_bytes, dtype=np.uint8)

    def stored(self) -> list[tuple[int, bytes]]:
        found = []
        for key, page in zip(KEYS, PAGES.numpy(), strict=True):
            codec = self.compression.codec_for(key, page)
            found.append((codec.code, codec.encode(page)))
        return found

    def step(self, *, compute: float, bandwidth: float) -> float:
        """Returns how long the disk was busy."""
        pages = self.stored()
        self.clock.now += compute
        started = self.clock.now
        with self.compression.reading():
            for code, payload in pages:
                self.clock.now += len(payload) / bandwidth
                self.compression.readers[code].decode(memoryview(payload), self.out)
        return self.clock.now - started

    def steps(self, count: int, *, compute: float, bandwidth: float) -> float:
        return [self.step(compute=compute, bandwidth=bandwidth) for _ in range(count)][-1]


# The share


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    compute=st.floats(0, 3),
    decode=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    transfer=st.tuples(st.floats(0, 5), st.floats(0, 5)),
)
def test_the_least_share_that_balances(
    compute: float, decode: tuple[float, float], transfer: tuple[float, float]
) -> None:
    """Against trying a thousand: no smaller one is hidden; and where none is, none is faster."""
    share = balanced_share(compute=compute, decode=decode, transfer=transfer)
    assert 0 <= share <= 1

    def times(at: float) -> tuple[float, float]:
        mixed = [(1 - at) * one + at * other for one, other in (decode, transfer)]
        return compute + mixed[0], mixed[1]

    if transfer[1] >= transfer[0]:
        assert share == 0
        return
    for at in np.linspace(0, 1, 1001):
        working, moving = times(at)
        if at < share - 1e-6:
            assert moving > working, "a smaller share would have been hidden"
    working, moving = times(share)
    assert moving <= working + 1e-9 or share == 1


@pytest.mark.parametrize(
    ("compute", "transfer", "share"),
    [(1.0, (1.0, 0.4), 0.0), (0.7, (1.0, 0.4), 0.5), (0.3, (1.0, 0.4), 1.0), (0.0, (1.0, 1.0), 0.0)],
)
def test_shares_by_hand(compute: float, transfer: tuple[float, float], share: float) -> None:
    assert balanced_share(compute=compute, decode=(0.0, 0.0), transfer=transfer) == pytest.approx(share)


def test_slow_decoding_leaves_more_time_to_read() -> None:
    """Decoding counts as work that reads hide behind: 0.5 + 0.2 share = 1 - 0.6 share."""
    assert balanced_share(compute=0.5, decode=(0.0, 0.2), transfer=(1.0, 0.4)) == pytest.approx(0.625)


# The policy, by a simulated clock


def test_a_fast_disk_keeps_every_page_lossless() -> None:
    simulation = Simulation()
    for _ in range(20):
        assert simulation.step(compute=1.0, bandwidth=1e9) < 1.0
        assert simulation.compression.share == 0.0
    assert {code for code, _ in simulation.stored()} == {ZSTD}


def test_a_slow_disk_gets_as_many_approximate_pages_as_it_takes() -> None:
    """Until reading takes as long as computing, and no longer."""
    simulation = Simulation()
    bytes_lossless = sum(len(payload) for _, payload in simulation.stored())
    bandwidth = bytes_lossless / 1.4
    assert simulation.step(compute=1.0, bandwidth=bandwidth) == pytest.approx(1.4)
    assert simulation.compression.share == 0.0, "one read says nothing of the time between reads"
    busy = simulation.steps(30, compute=1.0, bandwidth=bandwidth)
    assert busy == pytest.approx(1.0, rel=0.1)
    assert 0.4 < simulation.compression.share < 0.6
    assert {code for code, _ in simulation.stored()} == {ZSTD, INT4}


def test_a_disk_that_is_far_too_slow_gets_nothing_else_and_a_recovered_one_nothing() -> None:
    simulation = Simulation()
    simulation.steps(5, compute=0.01, bandwidth=1e5)
    assert simulation.compression.share == 1.0
    assert {code for code, _ in simulation.stored()} == {INT4}
    simulation.steps(80, compute=1.0, bandwidth=1e9)
    assert simulation.compression.share == 0.0


def test_somebody_thinking_is_not_computing() -> None:
    """An hour between two reads moves the share for a few reads, not for good."""
    simulation = Simulation()
    bandwidth = sum(len(payload) for _, payload in simulation.stored()) / 1.4
    simulation.steps(30, compute=1.0, bandwidth=bandwidth)
    before = simulation.compression.share
    simulation.step(compute=3600.0, bandwidth=bandwidth)
    simulation.steps(60, compute=1.0, bandwidth=bandwidth)
    assert simulation.compression.share == pytest.approx(before, rel=0.15)


def test_the_same_times_give_the_same_shares() -> None:
    one, two = Simulation(), Simulation()
    for i in range(20):
        for simulation in (one, two):
            simulation.step(compute=1.0 + i % 3, bandwidth=2e5)
        assert one.compression.share == two.compression.share
        assert one.stored() == two.stored()


def test_decoding_is_not_reading() -> None:
    """A clock that only decoding moves: the disk took no time."""
    clock = Clock()
    compression = AdaptiveCompression(LAYOUT, clock=clock)
    payload = Int4Codec(LAYOUT).encode(PAGES[0].numpy())

    class Slow(Int4Codec):
        def decode(self, payload: memoryview, out: np.ndarray) -> None:
            super().decode(payload, out)
            clock.now += 1.0

    compression._meters[INT4]._codec = Slow(LAYOUT)
    for _ in range(5):
        clock.now += 0.001
        with compression.reading():
            compression.readers[INT4].decode(memoryview(payload), np.empty(LAYOUT.page_bytes, dtype=np.uint8))
        assert compression.share == 0.0


def test_reads_that_fail_say_nothing() -> None:
    compression = AdaptiveCompression(LAYOUT, clock=Clock())
    for _ in range(3):
        with compression.reading():
            pass
    assert compression.share == 0.0


def test_reads_of_several_threads_count_what_each_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved: one begins, another begins, decodes and ends, the first ends."""
    clock = Clock()
    compression, noted = AdaptiveCompression(LAYOUT, clock=clock), []
    note = compression._note

    def noting(started: float, ended: float, used: dict[int, Any]) -> None:
        noted.append((ended - started, {code: vars(decoded) for code, decoded in used.items()}))
        note(started, ended, used)

    monkeypatch.setattr(compression, "_note", noting)
    out = np.empty(LAYOUT.page_bytes, dtype=np.uint8)

    def read(codec: int, count: int) -> None:
        payload = compression.codec_for(KEYS[0], PAGES[0].numpy()).encode(PAGES[0].numpy())
        for _ in range(count):
            clock.now += 1.0
            compression.readers[codec].decode(memoryview(payload), out)

    def other() -> None:
        with compression.reading():
            read(ZSTD, 3)

    with compression.reading():
        read(ZSTD, 1)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        read(ZSTD, 1)
    pages = [decoded[ZSTD]["raw_bytes"] / LAYOUT.page_bytes for _, decoded in noted]
    assert [took for took, _ in noted] == [3.0, 5.0]
    assert pages == [3, 2]
    assert 0 <= compression.share <= 1


# Which pages


def test_a_pages_codec_depends_on_its_key_alone() -> None:
    keys = [page_key(layer, chain) for layer in range(30) for chain in TEXT.chains]
    page = PAGES[0].numpy()

    def chosen(share: float) -> set[bytes]:
        compression = AdaptiveCompression(LAYOUT)
        compression.share = share
        return {key for key in keys if compression.codec_for(key, page).code == INT4}

    assert chosen(0.0) == set()
    assert chosen(1.0) == set(keys)
    for share in (0.1, 0.5, 0.9):
        assert len(chosen(share)) / len(keys) == pytest.approx(share, abs=0.03)
        assert chosen(share) == chosen(share)
    assert chosen(0.1) < chosen(0.5) < chosen(0.9)
    of_one_page = {key[:2] for key in chosen(0.5) if key[2:] == TEXT.chains[0]}
    assert 5 < len(of_one_page) < 25, "layers are drawn apart"


def test_pages_that_four_bits_cannot_hold_stay_lossless() -> None:
    compression = AdaptiveCompression(LAYOUT)
    compression.share = 1.0
    page = NUMBERS[0].clone()
    page[77] = float("nan")
    raw = page.to(torch.bfloat16).view(torch.uint8).numpy()
    assert compression.codec_for(KEYS[0], raw).code == ZSTD


@pytest.mark.parametrize("name", CODECS)
def test_one_codec_is_never_left(name: str) -> None:
    compression = make_compression(name, LAYOUT, {0: PROFILE})
    assert isinstance(compression, OneCodec)
    for _ in range(3):
        with compression.reading():
            assert compression.codec_for(KEYS[0], PAGES[0].numpy()).code == make_codec(name, LAYOUT).code
    assert sorted(compression.readers) == sorted(make_codec(each, LAYOUT).code for each in CODECS)
    assert compression.share == (1.0 if name == "int4" else 0.0)


@pytest.mark.parametrize("name", LOSSY)
def test_pages_that_a_codec_cannot_hold_are_written_losslessly(name: str) -> None:
    page = NUMBERS[0].clone()
    page[77] = float("inf")
    raw = page.to(torch.bfloat16).view(torch.uint8).numpy()
    assert make_compression(name, LAYOUT, {0: PROFILE}).codec_for(KEYS[0], raw).code == ZSTD


def test_unknown_names_are_refused() -> None:
    assert isinstance(make_compression("adaptive", LAYOUT), AdaptiveCompression)
    with pytest.raises(ValueError, match=r"codec is one of raw, zstd, .*, adaptive, not 'gzip'"):
        make_compression("gzip", LAYOUT)


def test_a_texts_first_page_is_lossless_where_the_codec_asks_for_it() -> None:
    for name, code in (("rotatekv", ZSTD), ("kivi", 4)):
        compression = make_compression(name, LAYOUT)
        assert compression.codec_for(KEYS[0], PAGES[0].numpy(), is_first=True).code == code
        assert compression.codec_for(KEYS[0], PAGES[0].numpy()).code == make_codec(name, LAYOUT).code


def test_a_codec_that_needs_a_profile_takes_the_layers_own() -> None:
    """Of a layer whose points are wider apart, pages come back worse; without a profile none are encoded."""
    with pytest.raises(ValueError, match="codec 'kvquant:bits=2' needs a profile of the model"):
        make_compression("kvquant:bits=2", LAYOUT)
    poor = {name: points * 0 for name, points in PROFILE.items()}
    compression, off = make_compression("kvquant:bits=2", LAYOUT, {0: PROFILE, 7: poor}), []
    for layer in (0, 7):
        codec = compression.codec_for(page_key(layer, TEXT.chains[0]), PAGES[0].numpy())
        out = np.empty(LAYOUT.page_bytes, dtype=np.uint8)
        compression.readers[codec.code].decode(memoryview(codec.encode(PAGES[0].numpy())), out)
        off.append((torch.from_numpy(out).view(torch.bfloat16).float() - NUMBERS[0]).square().mean().item())
    assert off[0] < off[1] / 2


def test_which_names_are_lossy() -> None:
    assert [name for name in codec_names() if not is_lossy(name)] == [*LOSSLESS]


def test_the_usual_size_of_a_page_is_that_of_its_codec() -> None:
    int4 = Int4Codec(LAYOUT).payload_bytes / LAYOUT.page_bytes
    assert [usual_ratio(name, LAYOUT) for name in ("raw", "int4", "adaptive")] == [1.0, int4, int4]
    assert usual_ratio("kivi", LAYOUT) < int4 < usual_ratio("int8", LAYOUT) < usual_ratio("zstd", LAYOUT) < 1
