"""The code that int8 and int4 share: groups of numbers as a minimum, a scale, and whole steps (KIVI, arXiv 2402.02750).

Idea   Outliers of keys stay in the same channels, so a channel's tokens share a scale; values have no
       such channels, so runs of a token's channels share one.
Bytes  fp16 scales and minima of keys `[G, D, ceil(L/32)]`, then of values `[G, L, ceil(D/64)]`, then the
       codes of keys and of values `[G, L, D]`: a byte each, or two to a byte, the first one low. Groups are the
       fewest of at most 32 tokens or 64 channels, equally long but for the last. Of pages whose keys contain the
       values there are those of keys only.
Error  At most half a scale, and the rounding of the result to its dtype. The minimum is rounded to fp16
       downwards and the scale upwards, so that the steps reach from the least number to the largest.
Safety A payload has one size, given by the layout, and scales and minima only such values as are written.
"""

from __future__ import annotations

import numpy as np

from ..errors import RecordError
from ..page import PageLayout

_TOKENS, _CHANNELS = 32, 64
"""The most tokens of a key's channel, and the most channels of a token's value, that share a scale."""
_MOST = (_TOKENS, _CHANNELS)
_LIMIT = 2.0**15
"""Numbers beyond this are refused: a result rounded up might not fit fp16."""


class GroupedCodec:
    """A page as codes of `bits` bits; see the module. Any thread may use an instance."""

    code: int
    name: str
    bits: int
    """Bits per number: 4 or 8."""

    def __init__(self, layout: PageLayout) -> None:
        heads, tokens, channels = layout.num_heads, layout.page_size, layout.head_dim
        self._dtype, self._page_bytes = layout.dtype, layout.page_bytes
        self._shape = (heads, tokens, channels)
        tables = (heads, channels, -(-tokens // _TOKENS)), (heads, tokens, -(-channels // _CHANNELS))
        self._tables, self._sides = tables[: layout.sides], layout.sides
        self._last = 2**self.bits - 1
        table_bytes = sum(4 * int(np.prod(shape)) for shape in self._tables)
        self.payload_bytes = table_bytes + layout.sides * heads * tokens * channels * self.bits // 8
        """Bytes of one payload, the same for every page."""

    def accepts(self, raw: np.ndarray) -> bool:
        return bool((np.abs(_widened(raw, self._dtype)) <= _LIMIT).all())

    def encode(self, raw: np.ndarray) -> bytes:
        numbers = _widened(raw, self._dtype)
        if not (np.abs(numbers) <= _LIMIT).all():
            raise ValueError(f"{self.name} holds finite numbers up to {_LIMIT:.0f} and the page has others")
        heads, tokens, channels = self._shape
        pages = numbers.reshape(heads, self._sides, tokens, channels)
        each = [self._quantized(_by_group(at, pages[:, at]), _MOST[at]) for at in range(self._sides)]
        codes = np.concatenate([_by_group(at, found).ravel() for at, (found, *_) in enumerate(each)])
        packed = codes if self.bits == 8 else codes[::2] | codes[1::2] << 4
        tables = [table.astype("<f2").tobytes() for _, *both in each for table in both]
        return b"".join([*tables, packed.tobytes()])

    def decode(self, payload: memoryview, out: np.ndarray) -> None:
        if len(payload) != self.payload_bytes or out.nbytes != self._page_bytes:
            raise RecordError(
                f"payload: {len(payload)} bytes for a page of {out.nbytes}; "
                f"{self.name} has {self.payload_bytes} for {self._page_bytes}"
            )
        ends = np.cumsum([2 * int(np.prod(shape)) for shape in self._tables])
        halves = np.frombuffer(payload, dtype="<f2", count=int(ends[-1]))
        parts = np.split(halves, ends[:-1])
        tables = [part.reshape(2, *shape) for part, shape in zip(parts, self._tables, strict=True)]
        if not all(self._is_written(scale, least) for scale, least in tables):
            raise RecordError(f"payload: a scale or minimum that {self.name} does not write")
        codes = self._unpacked(np.frombuffer(payload, dtype=np.uint8, offset=halves.nbytes))
        heads, tokens, channels = self._shape
        pages = np.empty((heads, self._sides, tokens, channels), dtype=np.float32)
        for at, (scale, least) in enumerate(tables):
            pages[:, at] = _by_group(at, _restored(_by_group(at, codes[at]), scale, least))
        _narrow(pages, self._dtype, out)

    def _quantized(self, numbers: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Quantise fp32 `[.., n]`. Returns codes uint8 `[.., n]`, and scales and minima fp16 `[.., ceil(n / most)]`."""
        length = numbers.shape[-1]
        width = -(-length // -(-length // most))
        starts = np.arange(0, length, width)
        least = _rounded(np.minimum.reduceat(numbers, starts, -1), -np.inf)
        extent = np.maximum.reduceat(numbers, starts, -1) - least.astype(np.float32)
        scale = _rounded(extent / self._last, np.inf)
        steps = numbers - _spread(least, length, width)
        divisor = _spread(np.where(scale > 0, scale, 1), length, width)
        return np.clip(np.rint(steps / divisor), 0, self._last).astype(np.uint8), scale, least

    def _unpacked(self, packed: np.ndarray) -> np.ndarray:
        """The codes of each side, uint8 `[S, G, L, D]`."""
        if self.bits == 4:
            both = np.empty((len(packed), 2), dtype=np.uint8)
            both[:, 0], both[:, 1] = packed & self._last, packed >> 4
            packed = both
        return packed.reshape(self._sides, *self._shape)

    def _is_written(self, scale: np.ndarray, least: np.ndarray) -> bool:
        """True if everything that these scales and minima restore is finite in every dtype."""
        if not (np.isfinite(scale).all() and np.isfinite(least).all()):
            return False
        largest = least.astype(np.float32) + self._last * scale.astype(np.float32)
        return bool(((scale >= 0) & (least >= -_LIMIT) & (largest <= 1.01 * _LIMIT)).all())


def _by_group(side: int, numbers: np.ndarray) -> np.ndarray:
    """A side `[G, L, D]` with the numbers that share a scale along the last axis, or back: keys by channel, values by
    token as they are."""
    return numbers.transpose(0, 2, 1) if side == 0 else numbers


def _restored(codes: np.ndarray, scale: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The numbers that `codes` stand for, fp32 `[.., n]`."""
    length = codes.shape[-1]
    width = -(-length // scale.shape[-1])
    restored: np.ndarray = codes * _spread(scale, length, width) + _spread(least, length, width)
    return restored


def _spread(table: np.ndarray, length: int, width: int) -> np.ndarray:
    """Each group's number for each of its members: fp32 `[.., length]`, or `[.., 1]` for a single group."""
    wide = table.astype(np.float32)
    return wide if table.shape[-1] == 1 else wide.repeat(width, -1)[..., :length]


def _rounded(numbers: np.ndarray, towards: float) -> np.ndarray:
    """Round fp32 to fp16, never away from `towards`, which is -inf or inf."""
    near = numbers.astype(np.float16)
    short = near.astype(np.float32) > numbers if towards < 0 else near.astype(np.float32) < numbers
    return np.where(short, np.nextafter(near, np.float16(towards)), near)


def _widened(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The page's numbers as fp32 `[page_bytes / itemsize]`."""
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f2" if dtype == "float16" else "<f4").astype(np.float32, copy=False)


def _narrow(numbers: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Write fp32 numbers into the page's bytes `out`, rounded to nearest, halves to even."""
    flat = numbers.reshape(-1)
    if dtype == "bfloat16":
        bits = flat.view(np.uint32)
        out.view("<u2")[:] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    else:
        out.view("<f2" if dtype == "float16" else "<f4")[:] = flat
