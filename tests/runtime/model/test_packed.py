"""Packed linear layers: few rows by the packed weight, many by a wider one, and both say the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closeness import assert_close
from torch import Tensor

from stratakv.runtime.model import packed
from stratakv.runtime.model.packed import Int4Linear, Int8Linear, PackedLinear, PackedProduct, joined

CPU = torch.device("cpu")


def made(kind: type[PackedLinear], rows: int, *, bias: bool = True, seed: int = 0) -> PackedLinear:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 128, generator=draw).bfloat16()
    own = torch.nn.Parameter(torch.randn(rows, generator=draw).bfloat16(), requires_grad=False) if bias else None
    return Int4Linear.of(weight, own, CPU, 64) if kind is Int4Linear else Int8Linear.of(weight, own, CPU)


def x_of(*shape: int) -> Tensor:
    return torch.randn(*shape, 128, generator=torch.Generator().manual_seed(7)).bfloat16()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_few_rows_and_many_are_multiplied_with_the_same_numbers(kind: type[PackedLinear], bias: bool) -> None:
    layer, x = made(kind, 24, bias=bias), x_of(2, kind.few)
    own = None if layer.bias is None else layer.bias.float()
    expected = F.linear(x.float(), layer.widened().float(), own)
    assert_close("many", layer(x), expected, torch.bfloat16)
    assert_close("few", layer(x[:, :1]), expected[:, :1], torch.bfloat16)
    assert_close("product", PackedProduct(layer)(x[:, 0]), expected[:, 0], torch.bfloat16)


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_how_many_rows_are_rounded_at_a_time_changes_nothing(
    kind: type[PackedLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(kind, 24)
    monkeypatch.setattr(packed, "_NUMBERS", 5 * 128)
    for name, weight in made(kind, 24).named_parameters():
        assert torch.equal(weight, whole.get_parameter(name)), name


@pytest.mark.parametrize("kind", [Int4Linear, Int8Linear])
def test_what_is_joined_lies_once(kind: type[PackedLinear]) -> None:
    layers, x = [made(kind, 16, seed=1), made(kind, 8, bias=False, seed=2), made(kind, 24, seed=3)], x_of(2)
    apart, wide = torch.cat([layer(x) for layer in layers], -1), torch.cat([layer.widened() for layer in layers])
    together = joined([*layers])
    assert (together.out_features, together.in_features) == (48, 128)
    assert torch.equal(together.widened(), wide)
    assert_close("together", together(x), apart, torch.bfloat16)
    assert_close("apart", torch.cat([layer(x) for layer in layers], -1), apart, torch.bfloat16)
    for layer in layers:
        for name in ("codes", "scales"):
            theirs, all_of_it = getattr(layer, name).untyped_storage(), getattr(together, name).untyped_storage()
            assert theirs.data_ptr() == all_of_it.data_ptr(), name
