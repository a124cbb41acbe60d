"""Rotation as the formula says, beside complex numbers."""

from __future__ import annotations

import torch

from stratakv.kernels.rotary import rotated


def test_pairs_turn_as_complex_numbers_do_and_the_rest_stays() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, angle = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 5, 10), (5, 3)))
    found = rotated(keys, angle.cos(), angle.sin())
    turned = torch.complex(keys[..., :3], keys[..., 3:6]) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(found, torch.cat([turned.real, turned.imag, keys[..., 6:]], -1))


def test_turned_back_is_as_before() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, angle = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((4, 8), (4, 4)))
    there = rotated(keys, angle.cos(), angle.sin())
    torch.testing.assert_close(rotated(there, angle.cos(), -angle.sin()), keys)
    assert not torch.allclose(there, keys)
