"""Products of a weight with the vectors of a decode step: as the model has it, or in 8 bits.

A decode step reads every weight once, so it takes about as long as reading them from memory; at 8 bits that is half
of what 16 take. Lossy: each output's weights share a scale and are rounded to 255 steps of it.
`examples/bench/decode_floor.py` measures what that does to a model's predictions.

Shapes  x [B, K]   weight [N, K]   bias [N]   ->  [B, N]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MULTIPLE = 64
"""Weights must have multiples of this many rows and columns: PyTorch's 8-bit product reads beyond rows of other
widths."""
_STEPS = 127


class Linear(nn.Linear):
    """A linear layer whose numbers are still to come: making some up would import torch's compiler, on a device without
    memory."""

    def reset_parameters(self) -> None:
        pass


class Product:
    """Computes `x @ weight.T + bias`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Product(Product):
    """Computes the same with a weight of 8 bits, made here; the caller's weight stays as it is.

    Raises ValueError if PyTorch cannot multiply such a weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"weights=int8 is for bfloat16 or float32 on a CPU, not {weight.dtype} on {weight.device}; leave it out"
            )
        if weight.shape[0] % _MULTIPLE or weight.shape[1] % _MULTIPLE:
            raise ValueError(
                f"weights=int8 needs weights of multiples of {_MULTIPLE}, not {list(weight.shape)}; leave it out"
            )
        largest = weight.detach().float().abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        self.scale = (largest / _STEPS).to(weight.dtype)  # rounded first: steps are of the scale that multiplies them
        steps = torch.round(weight.detach().float() / self.scale.float().unsqueeze(1))
        super().__init__(steps.clamp_(-_STEPS, _STEPS).to(torch.int8), bias)

    def __call__(self, x: Tensor) -> Tensor:
        out = torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        return out if self.bias is None else out + self.bias


PRODUCTS: dict[str, type[Product]] = {"own": Product, "int8": Int8Product}
"""The products that decode may use, by name."""
