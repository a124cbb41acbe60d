"""Products of a weight with the vectors of a decode step: as the model has it, or in 8 bits.

A decode step reads every weight once, so it takes about as long as reading them from memory; at 8 bits that is half
of what 16 take. Lossy: each output's weights share a scale and are rounded to 255 steps of it.
`examples/bench/decode_floor.py` measures what that does to a model's predictions.

Shapes  x [B, K]   weight [N, K]   bias [N]   ->  [B, N]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.compiled import record as r
from .rounding import to_int8

_MULTIPLE = 64
"""Weights must have multiples of this many rows and columns: PyTorch's 8-bit product reads beyond rows of other
widths."""
ALL_KNOWN = "is for models whose layers are all known; leave it out"
"""Said of weights other than a model's own, where decode has no form of ours for some layers."""


class Linear(nn.Linear):
    """A linear layer whose numbers are still to come: making some up would import torch's compiler, on a device without
    memory."""

    def reset_parameters(self) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Some rows of a weight, one behind the other in memory, as compiled loops read them."""

    kind: int
    """How they are written: one of `kernels.compiled.record`."""
    address: int
    rows: int
    columns: int
    owner: object
    """Keeps the memory."""
    scale: Tensor | None = None
    """Of int8, `[rows]`."""
    bias: Tensor | None = None
    """`[rows]`, in the order of the rows."""
    rounds: bool = False
    """Of blocks: they are multiplied with x rounded to 16 bits (`kernels.compiled.blocks`), not with x in fp32."""
    pairs: int = 0
    """The width of a head whose rows stand in pairs (2i, 2i + 1), not in halves (i, i + pairs / 2). 0: none does."""

    @property
    def row_bytes(self) -> int:
        numbers, size = r.BLOCKS[self.kind]
        return self.columns // numbers * size


KINDS = {torch.float32: r.F32, torch.bfloat16: r.BF16, torch.int8: r.I8}


def strip_of(weight: Tensor, bias: Tensor | None = None) -> Strip:
    """A weight `[N, K]` of a dtype of `KINDS`."""
    assert weight.is_contiguous()
    rows, columns = weight.shape
    return Strip(
        kind=KINDS[weight.dtype], address=weight.data_ptr(), rows=rows, columns=columns, owner=weight, bias=bias
    )


class Product:
    """Computes `x @ weight.T + bias`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def dtype(self) -> torch.dtype:
        """The type of x."""
        return self.weight.dtype

    @property
    def strips(self) -> list[Strip]:
        """The weight for compiled loops, one strip below the other."""
        return [strip_of(self.weight, self.bias)]

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
        codes, self.scale = to_int8(weight)
        super().__init__(codes, bias)

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def strips(self) -> list[Strip]:
        rounds = self.dtype is not torch.float32  # it is some hundred times finer than what x is anyway
        return [replace(strip_of(self.weight, self.bias), scale=self.scale, rounds=rounds)]

    def __call__(self, x: Tensor) -> Tensor:
        out = torch._weight_int8pack_mm(x.contiguous(), self.weight, self.scale)
        return out if self.bias is None else out + self.bias


PRODUCTS: dict[str, type[Product]] = {"own": Product, "int8": Int8Product}
"""The products that decode may use, by name, of weights in memory."""
PACKED = "int4"
"""Weights that are rounded while they are loaded, and are nowhere else then (`packing`); on a GPU `int8` is so, too."""
INT8_EXPERTS = "weights=int8 is for models without experts on a CPU; leave it out, or take a GGUF file in Q8_0"
IN_MEMORY = (*PRODUCTS, PACKED)
WEIGHTS = (*IN_MEMORY, "file")
"""The weights that decode may multiply with: those, and a GGUF file's as they stand in it (`file_weights`)."""
