"""Linear layers whose weight is rounded to 8 or 4 bits, on a device that multiplies with it so.

    few rows    a product with the packed weight (`kernels.int4_product`, `kernels.int8_product`)
    more rows   the weight is made as wide as x for this one product

Nothing else holds the weight. So prompts are read with the rounded numbers, too, and the model never lies on the device
in 16 bits, not while it is loaded either: a weight comes there some rows at a time.

Shapes  x [.., K]   weight [N, K]   bias [N]   ->  [.., N]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import int4_product, int8_product
from .products import Product, Strip
from .rounding import to_int4, to_int8

_NUMBERS = 1 << 22
"""Numbers that are rounded at a time: some of them are in memory in fp32 then."""


class PackedLinear(nn.Module, ABC):
    """A linear layer of codes, and of what they stand for. Layers of one kind are made by `of`."""

    few: ClassVar[int] = 64
    """The most rows that are multiplied with the packed weight: kernels read it again for every 16 rows. Widening reads
    and writes some ten times as many bytes once."""
    rows_at: ClassVar[int]
    """The dimension of `scales` that is the rows of the weight."""

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> None:
        super().__init__()
        self.codes, self.scales = (nn.Parameter(one, requires_grad=False) for one in (codes, scales))
        self.bias = bias
        self.out_features, self.in_features = shape

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """The product of `[B, K]` with the packed weight, `[B, N]`."""

    @abstractmethod
    def widened(self) -> Tensor:
        """The weight `[N, K]` as it was rounded, in the dtype of `scales`."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) > self.few:
            return F.linear(x, self.widened().to(x.dtype), self.bias)
        out = self.multiply(rows)
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], -1)


class Int4Linear(PackedLinear):
    """Codes int32 and scales as `kernels.int4_product` has them."""

    rows_at = 1

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, device: torch.device, group: int) -> Int4Linear:
        """Round a weight that lies anywhere."""
        parts = [to_int4(some.to(device), group) for some in _some_rows(weight)]
        codes, scales = torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts], 1)
        return cls(int4_product.pack(codes), scales, bias, (weight.shape[0], weight.shape[1]))

    def multiply(self, x: Tensor) -> Tensor:
        return int4_product.int4_product(x, self.codes, self.scales)

    def widened(self) -> Tensor:
        return int4_product.widen_int4(self.codes, self.scales)


class Int8Linear(PackedLinear):
    """Codes int8 `[N, K]`, a scale `[N]` for each row."""

    rows_at = 0

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, device: torch.device) -> Int8Linear:
        """Round a weight that lies anywhere."""
        codes, scales = zip(*(to_int8(some.to(device)) for some in _some_rows(weight)), strict=True)
        return cls(torch.cat(codes), torch.cat(scales), bias, (weight.shape[0], weight.shape[1]))

    def multiply(self, x: Tensor) -> Tensor:
        return int8_product.int8_product(x, self.codes, self.scales)

    def widened(self) -> Tensor:
        return int8_product.widen_int8(self.codes, self.scales)


class PackedProduct(Product):
    """Computes `x @ weight.T + bias` with packed weights. No compiled loop reads them."""

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__(linear.codes, linear.bias)
        self._linear = linear

    @property
    def dtype(self) -> torch.dtype:
        return self._linear.scales.dtype

    @property
    def strips(self) -> list[Strip]:
        return []

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._linear(x)
        return out


def joined(layers: list[Any]) -> PackedLinear:
    """Join packed layers over the same input. What those hold becomes views of the joined one's."""
    first: PackedLinear = layers[0]
    if len(layers) == 1:
        return first
    rows = [layer.out_features for layer in layers]
    codes = torch.cat([layer.codes for layer in layers])
    scales = torch.cat([layer.scales for layer in layers], first.rows_at)
    biases = [layer.scales.new_zeros(count) if layer.bias is None else layer.bias
              for layer, count in zip(layers, rows, strict=True)]  # fmt: skip
    bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
    shares = torch.split(codes, [len(layer.codes) for layer in layers])
    for layer, some, theirs in zip(layers, shares, torch.split(scales, rows, first.rows_at), strict=True):
        layer.codes.data, layer.scales.data = some, theirs
    return type(first)(codes, scales, bias, (sum(rows), first.in_features))


def _some_rows(weight: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight.detach(), max(1, _NUMBERS // weight.shape[1]))
