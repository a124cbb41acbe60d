"""What lossy codecs share: numbers in fp32, payloads of parts of fixed sizes, and what is refused.

Payload  A byte for each setting, and a zero where they are odd, then the parts, each as long as the layout says: all
         pages take the same room. A payload says by its settings how it is read, so pages of other settings are.
Limits   Finite numbers up to 32768 are held: a result rounded up must fit fp16. Pages with others are refused.
Safety   A payload has one size, fp16 parts are finite, scales not negative, and what comes out is within the limits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..errors import RecordError
from ..page import PageLayout
from .codec import NoOptions, Profile
from .groups import packed, packed_bytes, unpacked

LIMIT = 2.0**15
"""The largest number that is held."""
HALF, SCALE = "float16", "scale"
"""Kinds of parts: of fp16, and of fp16 that is not negative."""


class Part(NamedTuple):
    """An array in a payload. `kind`: `SCALE`, the name of a page's dtype, or a number of bits: codes, uint8."""

    kind: str | int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        bits = self.kind if isinstance(self.kind, int) else 32 if self.kind == "float32" else 16
        return packed_bytes(prod(self.shape), bits)

    def to_bytes(self, array: np.ndarray) -> bytes:
        assert array.shape == self.shape, f"a part of {array.shape} where {self.shape} is promised"
        if isinstance(self.kind, int):
            return packed(array, self.kind).tobytes()
        return narrowed(array, self.kind).tobytes()

    def from_bytes(self, payload: memoryview) -> np.ndarray:
        """Raises RecordError for numbers that are not written."""
        stored = np.frombuffer(payload, np.uint8)
        if isinstance(self.kind, int):
            return unpacked(stored, prod(self.shape), self.kind).reshape(self.shape)
        array = widened(stored, self.kind).reshape(self.shape)
        if not np.isfinite(array).all() or (self.kind == SCALE and (array < 0).any()):
            raise RecordError("payload: a scale or another number that is not written")
        return array


def widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers whose bytes are `raw` (uint8), as fp32 `[n]`."""
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f4" if dtype == "float32" else "<f2").astype(np.float32, copy=False)


def narrowed(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers rounded to a dtype: to nearest, halves to even. bf16 is the bits of each, uint16."""
    flat = np.ascontiguousarray(numbers).reshape(-1)
    if dtype == "bfloat16":
        bits = flat.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return flat.astype("<f4" if dtype == "float32" else "<f2", copy=False)


class LossyCodec(ABC):
    """A codec by what it makes of numbers `[S, G, L, D]`: `parts`, `quantise` and `restore`."""

    name: str
    code: int
    Options: type[Any] = NoOptions
    needs_profile: str = ""
    keeps_first: bool = False

    def __init__(self, layout: PageLayout, options: Any = None, profile: Profile | None = None) -> None:
        self.layout, self.options, self.profile = layout, options or self.Options(), profile
        self.sides, self.heads = layout.sides, layout.num_heads
        self.tokens, self.channels = layout.page_size, layout.head_dim
        given = [getattr(self.options, field.name) for field in fields(self.options)]
        self._stamp = bytes(given + [0] * (len(given) % 2))
        self._parts = self.parts()
        self.payload_bytes = len(self._stamp) + sum(part.num_bytes for part in self._parts)

    @abstractmethod
    def parts(self) -> list[Part]:
        """The arrays of every payload, in order."""

    @abstractmethod
    def quantise(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The arrays that `numbers`, fp32 `[S, G, L, D]`, become."""

    @abstractmethod
    def restore(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The numbers, fp32 `[S, G, L, D]`, that these arrays stand for."""

    def accepts(self, raw: np.ndarray) -> bool:
        return bool((np.abs(widened(raw, self.layout.dtype)) <= LIMIT).all())

    def encode(self, raw: np.ndarray) -> bytes:
        numbers = widened(raw, self.layout.dtype)
        if not (np.abs(numbers) <= LIMIT).all():
            raise ValueError(f"{self.name} holds finite numbers up to {LIMIT:.0f} and the page has others")
        pages = numbers.reshape(self.heads, self.sides, self.tokens, self.channels).swapaxes(0, 1)
        arrays = self.quantise(pages)
        return b"".join([self._stamp, *(p.to_bytes(a) for p, a in zip(self._parts, arrays, strict=True))])

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        numbers = self._as_written(payload)._numbers(payload, out.nbytes)
        out[:] = narrowed(numbers.swapaxes(0, 1), self.layout.dtype).view(np.uint8)

    def _as_written(self, payload: memoryview) -> LossyCodec:
        """The codec with the settings of this payload."""
        stamp = bytes(payload[: len(self._stamp)])
        if stamp == self._stamp:
            return self
        names = [field.name for field in fields(self.options)]
        try:
            found = type(self)(self.layout, self.Options(**dict(zip(names, stamp, strict=False))))
        except ValueError as error:
            raise RecordError(f"payload: {error}") from error
        if found._stamp != stamp:
            raise RecordError(f"payload: settings {stamp.hex()}, which {self.name} does not write")
        return found

    def _numbers(self, payload: memoryview, page_bytes: int) -> np.ndarray:
        if len(payload) != self.payload_bytes or page_bytes != self.layout.page_bytes:
            raise RecordError(
                f"payload: {len(payload)} bytes for a page of {page_bytes}; "
                f"{self.name} has {self.payload_bytes} for {self.layout.page_bytes}"
            )
        arrays, start = [], len(self._stamp)
        for part in self._parts:
            arrays.append(part.from_bytes(payload[start : start + part.num_bytes]))
            start += part.num_bytes
        numbers = self.restore(arrays)
        if not (np.abs(numbers) <= 1.01 * LIMIT).all():
            raise RecordError(f"payload: numbers beyond {LIMIT:.0f}, which {self.name} does not hold")
        return numbers
