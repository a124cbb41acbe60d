"""Weights rounded to 8 and 4 bits, against a plain loop over rows and groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.runtime.model.rounding import LAST, to_int4, to_int8


def drawn(rows: int, columns: int) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) / 30 + 0.01
    weight[0] = 0.0
    weight[1, : columns // 2] = 0.25
    weight[2, 3] = 1.5  # far off
    return weight.bfloat16()


def plainly(numbers: Tensor) -> Tensor:
    """A group by 16 codes over all of its range, the step and the middle of them in bf16."""
    low, high = float(numbers.min()), float(numbers.max())
    step = torch.tensor(max((high - low) / 15, 2.0**-126)).bfloat16().float()
    middle = torch.tensor(low + 8 * float(step)).bfloat16().float()
    return torch.round((numbers - middle) / step).clamp(-8, 7) * step + middle


def restored(codes: Tensor, scales: Tensor, group: int) -> Tensor:
    step, middle = (one.T.repeat_interleave(group, 1) for one in scales.float().unbind(-1))
    return (codes.float() - 8) * step + middle


@pytest.mark.parametrize("group", [32, 64, 128])
def test_4_bits_are_a_step_and_a_middle_for_each_group(group: int) -> None:
    weight = drawn(5, 256)
    codes, scales = to_int4(weight, group, last=(15,))
    assert (codes.dtype, scales.dtype, scales.shape) == (torch.uint8, torch.bfloat16, (256 // group, 5, 2))
    assert int(codes.max()) <= 15
    found = restored(codes, scales, group)
    for n in range(5):
        for k in range(0, 256, group):
            expected = plainly(weight[n, k : k + group].float())
            assert torch.allclose(found[n, k : k + group], expected, atol=1e-6)
    assert torch.equal(found[0], weight[0].float()), "zeros stay zeros"
    assert torch.equal(found[1, :128], weight[1, :128].float()), "one number for all is exact"


def test_numbers_that_have_steps_already_keep_them() -> None:
    """As those of a GGUF file, some groups of which do not use their first or last codes."""
    draw = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (64, 32), generator=draw)
    codes[:32] = codes[:32].clamp(2, 13)
    step = 2.0 ** torch.randint(-8, -4, (64, 1), generator=draw)
    weight = ((codes - 8) * step).bfloat16()
    found = restored(*to_int4(weight, 32), 32)
    assert torch.equal(found, weight.float())
    spread = restored(*to_int4(weight, 32, last=(15,)), 32)
    assert not torch.equal(spread[:32], weight[:32].float())


def test_of_several_steps_each_group_has_the_best() -> None:
    weight = drawn(16, 128)
    errors = {}
    for name, last in {"whole": (15,), "half": (8,), "best": LAST}.items():
        found = restored(*to_int4(weight, 64, last), 64) - weight.float()
        errors[name] = found.square().view(16, 2, 64).sum(-1)
    assert (errors["best"] <= torch.minimum(errors["whole"], errors["half"]) + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_8_bits_are_a_scale_for_each_row(dtype: torch.dtype) -> None:
    weight = drawn(4, 64).to(dtype)
    codes, scale = to_int8(weight)
    assert (codes.dtype, scale.dtype, int(codes.abs().max())) == (torch.int8, dtype, 127)
    for n in range(4):
        steps = torch.round(weight[n].float() / scale[n].float()).clamp(-127, 127)
        assert torch.equal(codes[n].float(), steps)
    assert (codes.float() * scale.float()[:, None] - weight.float()).abs().max() <= 0.51 * 1.5 / 126
