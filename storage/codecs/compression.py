"""Compression: which codec each page is written with. It is always the same one, or follows the disk's pace (arXiv
2506.20187).

A step computes for some time and reads some bytes from disk. As long as the disk needs no longer for them
than the step computes, they can be hidden behind it and nothing is gained by making them fewer. Where it
needs longer, the share θ of pages is written as int4 at which both take the same time:

    min over θ of max(compute + decode(θ), ((1 - θ) lossless + θ int4) raw bytes / bandwidth)

NOTE: a prefetch hides reads behind computing only where it guesses well, and where it pays at all. What it does
not hide adds to a step's time: there int4 would save time at any θ, and a page stays lossless although it costs some.

Every term is measured: times by a clock around each read, averaged over the last dozen or so reads.
Which pages make up the share depends on their keys alone, so that a page is the same in every run with
the same share, and a larger share contains the smaller.

Threads  Any: what a read decodes is counted in its own thread, and the averages are behind a lock. The model
         knows of one read at a time: several at once each count the others' waiting, which makes θ larger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np
import xxhash

from ..page import PageLayout, layer_of
from .codec import Codec, Profile
from .int4 import Int4Codec
from .registry import ADAPTIVE, CODECS, LOSSLESS, codec_class, make_codec, profile_part
from .zstd import ZstdCodec

_WEIGHT = 1 / 16
"""Weight of the newest read in every average."""
_LONGEST_GAP = 32
"""The longest gap that counts, in usual gaps: the rest of a longer pause is somebody thinking, not computing."""


class Compression(Protocol):
    """A way to encode pages on the disk edge."""

    readers: dict[int, Codec]
    """All codecs by number; together they decode every page there may be."""
    share: float
    """Share of pages that are now written as int4, 0 to 1."""

    def codec_for(self, key: bytes, raw: np.ndarray, *, is_first: bool = False) -> Codec:
        """The codec to write a page with; `raw` is uint8 `[page_bytes]`. `is_first`: it is the first of a text."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """A context manager to enter around every read from disk."""
        ...


class OneCodec:
    """Writes every page with one codec, or losslessly where that codec cannot hold the page."""

    def __init__(self, spec: str, layout: PageLayout, profiles: Mapping[int, Profile]) -> None:
        self._codec, self._lossless = make_codec(spec, layout), ZstdCodec(layout)
        self._of_layer = {layer: make_codec(spec, layout, profile) for layer, profile in profiles.items()}
        self.readers = _all_codecs(layout) | {self._codec.code: self._codec}
        self.share = float(self._codec.code == Int4Codec.code)

    def codec_for(self, key: bytes, raw: np.ndarray, *, is_first: bool = False) -> Codec:
        codec = self._of_layer[layer_of(key)] if self._codec.needs_profile else self._codec
        is_exact = (is_first and codec.keeps_first) or not codec.accepts(raw)
        return self._lossless if is_exact else codec

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class AdaptiveCompression:
    """Writes as many pages as int4 as the disk is too slow for, and the others losslessly."""

    def __init__(self, layout: PageLayout, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share = 0.0
        self._clock = clock
        self._lossless, self._int4 = ZstdCodec(layout), Int4Codec(layout)
        self._meters = {code: _Metered(codec, clock) for code, codec in _all_codecs(layout).items()}
        self.readers: dict[int, Codec] = dict(self._meters)
        self._raw_bytes = layout.page_bytes
        self._int4_ratio = self._int4.payload_bytes / layout.page_bytes
        self._gap, self._disk, self._lossless_ratio = _Rate(), _Rate(), _Rate()
        self._decoding = {code: _Rate() for code in self._meters}
        self._ended: float | None = None
        self._lock = threading.Lock()

    def codec_for(self, key: bytes, raw: np.ndarray, *, is_first: bool = False) -> Codec:
        chosen = xxhash.xxh3_64_intdigest(key) < self.share * 2**64
        return self._int4 if chosen and self._int4.accepts(raw) else self._lossless

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Time the read and the gap since the last one, and set the share anew."""
        for meter in self._meters.values():
            meter.reset()
        started = self._clock()
        yield
        ended = self._clock()
        used = {code: meter.here for code, meter in self._meters.items() if meter.here.raw_bytes}
        with self._lock:
            if used:
                self._note(started, ended, used)
            self._ended = ended if self._ended is None else max(ended, self._ended)

    def _note(self, started: float, ended: float, used: dict[int, _Decoded]) -> None:
        decoding = sum(decoded.seconds for decoded in used.values())
        self._disk.add(ended - started - decoding, sum(decoded.payload_bytes for decoded in used.values()))
        for code, decoded in used.items():
            self._decoding[code].add(decoded.seconds, decoded.raw_bytes)
            if code == ZstdCodec.code:
                self._lossless_ratio.add(decoded.payload_bytes, decoded.raw_bytes)
        if self._ended is None:
            return
        raw = sum(decoded.raw_bytes for decoded in used.values())
        gap = max(0.0, started - self._ended)
        usual = self._gap.amount
        self._gap.add(min(gap, _LONGEST_GAP * usual) if usual else gap, raw)
        lossless = self._decoding[ZstdCodec.code].per_unit(0.0)
        self.share = balanced_share(
            compute=self._gap.per_unit(0.0),
            decode=(lossless, self._decoding[Int4Codec.code].per_unit(lossless)),
            transfer=tuple(
                self._disk.per_unit(0.0) * ratio
                for ratio in (
                    self._lossless_ratio.per_unit(self._lossless.payload_bytes / self._raw_bytes),
                    self._int4_ratio,
                )
            ),
        )


def balanced_share(*, compute: float, decode: tuple[float, ...], transfer: tuple[float, ...]) -> float:
    """The least share of int4 at which reading takes no longer than computing and decoding; 1 if no share is enough, 0
    where int4 would not help.

    Args:
        compute: seconds of computing per raw byte that is read.
        decode, transfer: seconds per raw byte with no int4 and with nothing else.
    """
    over, at_most = (moved - compute - decoded for moved, decoded in zip(transfer, decode, strict=True))
    if over <= 0 or transfer[1] >= transfer[0]:
        return 0.0
    return 1.0 if at_most >= 0 else over / (over - at_most)


class _Rate:
    """Amount per unit, over the last reads: both are averaged, so that large reads count for more."""

    def __init__(self) -> None:
        self.amount = self._units = 0.0
        self.known = False

    def add(self, amount: float, units: float) -> None:
        weight = _WEIGHT if self.known else 1.0
        self.amount += weight * (amount - self.amount)
        self._units += weight * (units - self._units)
        self.known = True

    def per_unit(self, unknown: float) -> float:
        return self.amount / self._units if self.known else unknown


class _Decoded(threading.local):
    """The bytes that a thread's present read has decoded so far, and the seconds that took."""

    seconds = 0.0
    payload_bytes = raw_bytes = 0


class _Metered:
    """A codec that counts what it decodes, and how long that takes."""

    def __init__(self, codec: Codec, clock: Callable[[], float]) -> None:
        self._codec, self._clock = codec, clock
        self.code, self.here = codec.code, _Decoded()

    def reset(self) -> None:
        self.here.seconds, self.here.payload_bytes, self.here.raw_bytes = 0.0, 0, 0

    def accepts(self, raw: np.ndarray) -> bool:
        return self._codec.accepts(raw)

    def encode(self, raw: np.ndarray) -> bytes:
        return self._codec.encode(raw)

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        started = self._clock()
        self._codec.decode(payload, out)
        self.here.seconds += self._clock() - started
        self.here.payload_bytes += len(payload)
        self.here.raw_bytes += out.nbytes


def check_compression(spec: str) -> None:
    """Raises ValueError for what `make_compression` cannot make."""
    if spec != ADAPTIVE:
        codec_class(spec)


def is_lossy(spec: str) -> bool:
    """True if pages written with this compression may come back approximate."""
    return spec not in LOSSLESS


def usual_ratio(spec: str, layout: PageLayout) -> float:
    """Stored bytes per raw byte of pages of a compression; of `adaptive` where it has to be quick."""
    codec = Int4Codec(layout) if spec == ADAPTIVE else make_codec(spec, layout)
    return codec.payload_bytes / layout.page_bytes


def make_compression(spec: str, layout: PageLayout, profiles: Mapping[int, Profile] | None = None) -> Compression:
    """Make the compression of a codec's spec (see `registry`), or `adaptive`. Raises ValueError for any other.

    Args:
        profiles: by layer, for codecs that need them.
    """
    check_compression(spec)
    if profile_part(spec) and not profiles:
        raise ValueError(f"codec {spec!r} needs a profile of the model")
    return AdaptiveCompression(layout) if spec == ADAPTIVE else OneCodec(spec, layout, profiles or {})


def _all_codecs(layout: PageLayout) -> dict[int, Codec]:
    return {codec.code: codec for codec in (make_codec(name, layout) for name in CODECS)}


__all__ = [
    "AdaptiveCompression", "Compression", "OneCodec", "balanced_share", "check_compression", "is_lossy",
    "make_compression",
]  # fmt: skip
