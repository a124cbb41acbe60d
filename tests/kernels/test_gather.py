"""Gathering rows, and numbers from packed pages: references against loops and the codec, Triton against references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closeness import poison_empty
from torch import Tensor
from triton_device import DEVICE, INTERPRETED, MARKS

from stratakv.kernels.gather_packed import (
    Packing,
    gather_packed,
    gather_packed_reference,
    gather_packed_triton,
)
from stratakv.kernels.gather_rows import gather_rows, gather_rows_reference, gather_rows_triton
from stratakv.storage import PageLayout
from stratakv.storage.codecs.int4 import Int4Codec
from stratakv.storage.codecs.int8 import Int8Codec

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def on_host(tensor: Tensor) -> Tensor:
    """Pinned where there is a device to read it from."""
    return tensor if INTERPRETED else tensor.cpu().pin_memory()


# Rows

KERNELS = [gather_rows, gather_rows_reference, gather_rows_triton]


@pytest.mark.parametrize("gather", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(("count", "width"), [(0, 64), (1, 1), (13, 33), (5, 64), (3, 2048), (40, 6), (2, 1030)])
def test_rows(gather: Any, count: int, width: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(width)
    source = torch.randint(0, 255, (29, width), generator=random).to(dtype)
    rows = torch.randint(0, 29, (count,), generator=random)
    out = torch.full((count, width), 255, dtype=dtype, device=DEVICE)
    gather(on_host(source), rows.to(DEVICE), out)
    assert out.cpu().tolist() == [source[row].tolist() for row in rows.tolist()]


@pytest.mark.parametrize("gather", KERNELS)
@pytest.mark.parametrize(("step", "begin", "width"), [(30, 4, 5), (30, 4, 6), (31, 4, 6), (30, 3, 6)])
def test_rows_that_lie_apart(gather: Any, step: int, begin: int, width: int) -> None:
    """Aligned to words or not, by their length, their distance or their beginning."""
    source = on_host(torch.arange(7 * step, dtype=torch.int16).view(7, step))[:, begin : begin + width]
    rows = torch.tensor([6, 0, 0, 3], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, width, dtype=torch.int16, device=DEVICE)
    gather(source, rows, out)
    assert out.tolist() == source[[6, 0, 0, 3]].tolist()


@pytest.mark.parametrize(
    ("source", "rows", "out", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5), r"\[3, 5\]"),
        (torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4).half(), "one dtype"),
        (torch.zeros(4, 5).T, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4), "each row of source"),
    ],
)
def test_rows_that_do_not_fit_are_refused(source: Tensor, rows: Tensor, out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_rows(source, rows, out)


# Packed pages

CODECS = {8: Int8Codec, 4: Int4Codec}
SHAPES = [(2, 16, 64), (1, 48, 80), (3, 33, 96), (1, 5, 130), (1, 64, 256)]


def encoded(bits: int, shape: tuple[int, int, int], dtype: str) -> tuple[Tensor, Tensor]:
    """Five pages as payloads in slots longer than they need, and as the codec restores them `[5, G, 2, L, D]`."""
    heads, tokens, channels = shape
    layout = PageLayout(num_heads=heads, page_size=tokens, head_dim=channels, dtype=dtype)
    codec = CODECS[bits](layout)
    numbers = torch.randn(5, heads, 2, tokens, channels, generator=torch.Generator().manual_seed(tokens)) * 3
    pages = numbers.to(getattr(torch, dtype)).flatten(1).view(torch.uint8).numpy()
    payloads = np.full((5, codec.payload_bytes + 6 + codec.payload_bytes % 2), 255, dtype=np.uint8)
    restored = np.empty_like(pages)
    for page, payload, back in zip(pages, payloads, restored, strict=True):
        payload[: codec.payload_bytes] = np.frombuffer(codec.encode(page), dtype=np.uint8)
        codec.decode(memoryview(payload[: codec.payload_bytes]), back)
    assert Packing(*shape, bits).payload_bytes == codec.payload_bytes
    whole = torch.from_numpy(restored).view(getattr(torch, dtype)).view(numbers.shape)
    return on_host(torch.from_numpy(payloads)), whole.to(DEVICE)


@pytest.mark.parametrize("gather", [gather_packed, gather_packed_reference, gather_packed_triton])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_pages_are_restored_as_the_codec_does(
    gather: Any, bits: int, shape: tuple[int, int, int], dtype: str
) -> None:
    """Bit by bit, whole pages and single units, in any order."""
    payloads, whole = encoded(bits, shape, dtype)
    payloads = payloads.to(DEVICE) if gather is gather_packed_reference else payloads
    _, tokens, channels = shape
    for unit in {tokens, max(u for u in (1, 3, 4, 8) if tokens % u == 0)}:
        expected = whole.reshape(-1, unit * channels)
        rows = torch.randperm(len(expected), generator=torch.Generator().manual_seed(unit))[:9].to(DEVICE)
        out = torch.full((len(rows), unit * channels), float("nan"), dtype=whole.dtype, device=DEVICE)
        gather(payloads, rows, Packing(*shape, bits), out)
        assert torch.equal(out, expected[rows])


def test_nothing_is_gathered() -> None:
    payloads, _ = encoded(8, (2, 16, 64), "float16")
    gather_packed_triton(
        payloads,
        torch.zeros(0, dtype=torch.int64, device=DEVICE),
        Packing(2, 16, 64, 8),
        torch.empty(0, 64, device=DEVICE),
    )


@pytest.mark.parametrize(
    ("size", "bits", "width", "message"),
    [
        (9000, 5, 64, "4 or 8 and channels are even, not 5 and 64"),
        (4700, 8, 64, r"\[5, 4700\].*even and at least 4736"),
        (9001, 8, 64, "even"),
        (9000, 8, 63, r"\[3, 63\].*unit \* 64"),
        (9000, 8, 3 * 64, "divisor of 16"),
    ],
)
def test_payloads_that_do_not_fit_are_refused(size: int, bits: int, width: int, message: str) -> None:
    payloads, rows = torch.zeros(5, size, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        gather_packed(payloads, rows, Packing(2, 16, 64, bits), torch.zeros(3, width))
