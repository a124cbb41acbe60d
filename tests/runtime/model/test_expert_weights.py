"""Weights of experts are read where they lie, if all are written alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stratakv.runtime.model.expert_weights import ExpertWeight
from stratakv.runtime.model.products import Product, Strip


class Made(Product):
    """A product of given strips."""

    def __init__(self, *strips: Strip) -> None:
        super().__init__(torch.zeros(1, 1), None)
        self._strips = list(strips)

    @property
    def strips(self) -> list[Strip]:
        return self._strips


def strip(weight: Tensor, **changes: Any) -> Strip:
    (found,) = Product(weight, None).strips
    return replace(found, **changes)


def test_addresses_are_those_of_the_weights() -> None:
    each = [torch.randn(4, 8) for _ in range(3)]
    found = ExpertWeight.of([Product(weight, None) for weight in each])
    assert found is not None
    assert found.addresses.tolist() == [weight.data_ptr() for weight in each]
    assert (found.like.rows, found.like.columns) == (4, 8)
    assert found.biases == ()
    assert {id(owner) for owner in found.owners} == {id(weight) for weight in each}


def test_biases_stand_for_themselves_in_fp32() -> None:
    biases = [torch.randn(4).bfloat16() for _ in range(3)]
    found = ExpertWeight.of([Product(torch.randn(4, 8), bias) for bias in biases])
    assert found is not None
    assert all(torch.equal(one, bias.float()) for one, bias in zip(found.biases, biases, strict=True))
    assert found.bias_addresses.tolist() == [one.data_ptr() for one in found.biases]


@pytest.mark.parametrize(
    "other",
    [
        strip(torch.randn(4, 8).bfloat16()),
        strip(torch.randn(5, 8)),
        strip(torch.randn(4, 9)),
        strip(torch.randn(4, 8), rounds=True),
        strip(torch.randn(4, 8), pairs=2),
        strip(torch.randn(4, 8), scale=torch.ones(4)),
        strip(torch.randn(4, 8), bias=torch.ones(4)),
    ],
)
def test_unlike_ones_are_not_known(other: Strip) -> None:
    first = strip(torch.randn(4, 8))
    assert ExpertWeight.of([Made(first), Made(first)]) is not None
    assert ExpertWeight.of([Made(first), Made(other)]) is None
    assert ExpertWeight.of([Made(first), Made(first, first)]) is None
