"""Weights of 4 bits are packed as PyTorch's kernel for CUDA reads them, and multiplied as it does."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from stratakv.kernels.int4_product import int4_product, lacking, pack, unpack, widen_int4

SHAPES = [(8, 32), (24, 64), (40, 576), (16, 256)]
"""Rows and columns, for each of the three numbers of tiles that lie together."""


def codes(rows: int, columns: int) -> Tensor:
    return torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(rows), dtype=torch.uint8)


def as_the_kernel_packs(given: Tensor, inner: int) -> Tensor:
    """`matrix_to_m16n8k16_Bint4_layout` of PyTorch, thread by thread: each makes a word of four bytes of its row."""
    pairs = given[:, ::2].long() << 4 | given[:, 1::2].long()  # the even number in the high half, as it asks for
    tiles, outer = len(given) // 8, given.shape[1] // (16 * inner)
    out = torch.zeros(tiles, outer, 32, inner // 2, dtype=torch.int64)
    for n in range(tiles):
        for o in range(outer):
            for t in range(32):
                for k_tile in range(0, inner, 2):
                    base = (o * inner + k_tile) * 8 + t % 4
                    v = [int(pairs[n * 8 + t // 4, base + more]) for more in (0, 4, 8, 12)]
                    low = [(byte & 15) << 16 + 4 * at for at, byte in enumerate(v)]
                    high = [(byte >> 4) << 4 * at for at, byte in enumerate(v)]
                    out[n, o, t, k_tile // 2] = sum(low) + sum(high)
    return torch.where(out < 1 << 31, out, out - (1 << 32)).int()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_layout_is_that_of_pytorchs_source(rows: int, columns: int) -> None:
    given = codes(rows, columns)
    packed = pack(given)
    assert torch.equal(packed, as_the_kernel_packs(given, 2 * packed.shape[-1]))
    assert torch.equal(unpack(packed), given.to(torch.int8) - 8)
    assert torch.equal(pack(given.T.contiguous().T), packed), "where codes do not lie row by row"
    of_torch = pack(given.to("meta"))
    assert (of_torch.shape, of_torch.dtype) == (packed.shape, packed.dtype)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_product_is_that_of_steps_and_middles_of_groups(batch: int, group: int) -> None:
    draw = torch.Generator().manual_seed(group)
    given, x = codes(24, 256), torch.randn(batch, 256, generator=draw).bfloat16()
    scales = torch.randn(256 // group, 24, 2, generator=draw).bfloat16()
    exact = torch.empty(24, 256)
    for n in range(24):
        for k in range(256):
            step, middle = scales[k // group, n].tolist()
            exact[n, k] = (int(given[n, k]) - 8) * step + middle
    wide = widen_int4(pack(given), scales)
    assert wide.dtype is torch.bfloat16
    assert torch.equal(wide, exact.bfloat16())
    out = int4_product(x, pack(given), scales)
    assert (out.dtype, out.shape) == (torch.bfloat16, (batch, 24))
    assert_close("out", out, x.double() @ exact.bfloat16().double().T, torch.bfloat16)


def test_a_part_of_the_rows_is_a_part_of_what_is_packed() -> None:
    given, scales = codes(24, 64), torch.randn(2, 24, 2).bfloat16()
    whole = widen_int4(pack(given), scales)
    assert torch.equal(widen_int4(pack(given)[1:], scales[:, 8:]), whole[8:])


def test_what_cannot_be_packed_says_what_it_lacks() -> None:
    assert lacking(8, 32) is None
    for rows, columns in [(4, 32), (8, 48)]:
        assert (
            lacking(rows, columns) == f"rows in multiples of 8 and columns in multiples of 32, not [{rows}, {columns}]"
        )
