"""Which weights of a model are rounded to 8 or 4 bits, what they take, and how a decoder comes to have them.

They are the linear layers of decoder layers, those of experts among them. Left as they are: the embedding and the head;
what decides much with few numbers, as routers, gates and rates do; and what is multiplied otherwise than as a product.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import int4_product
from .lean_layer import fused
from .packed import Int4Linear, Int8Linear, PackedLinear, PackedProduct, joined
from .products import PACKED, Linear, Product

_OLDEST = (8, 0)
"""The compute capability from which PyTorch multiplies with 4 bits."""
GROUP = 32
"""See `Packing.group`; why so many, says docs/decisions/0059."""
_LEFT = ("gate", "shared_expert_gate", "in_proj_a", "in_proj_b", "in_proj_ba", "kv_b_proj")


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights are rounded: `int8` or `int4`."""

    weights: str
    group: int = GROUP
    """The most numbers of a row that share a step and a middle in 4 bits; of rows that it does not divide, fewer do."""

    @property
    def stated(self) -> dict[str, Any]:
        """What a store says of it: prompts are read with these weights, too."""
        return {"products": self.weights, **({"group": self.group} if self._is_int4 else {})}

    @property
    def _is_int4(self) -> bool:
        return self.weights == PACKED

    def check(self, decoder: Any) -> None:
        """Raise ValueError, in one line, if a weight of the decoder cannot be rounded so."""
        for name, layer in _packable(decoder) if self._is_int4 else ():
            if lacking := int4_product.lacking(layer.out_features, layer.in_features):
                raise ValueError(f"weights=int4 needs {lacking} as {name} has; leave it out, or use weights=int8")

    def pack(self, weight: Tensor, bias: Tensor | None, device: torch.device) -> PackedLinear:
        """The layer of a weight that lies anywhere, on `device`."""
        if self._is_int4:
            return Int4Linear.of(weight, bias, device, self._group(weight.shape[1]))
        return Int8Linear.of(weight, bias, device)

    def num_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a rounded weight of a model in 16 bits."""
        if self._is_int4:
            return rows * (columns // 2 + columns // self._group(columns) * 4)
        return rows * (columns + 2)

    def bytes_of(self, decoder: Any) -> int:
        """Bytes of a decoder's weights, of which those that stay are in 16 bits. Raises as `check`."""
        self.check(decoder)
        all_of_it: int = sum(2 * weight.numel() for weight in decoder.parameters())
        shapes: list[tuple[int, int]] = [(layer.out_features, layer.in_features) for _, layer in _packable(decoder)]
        return all_of_it + sum(self.num_bytes(rows, columns) - 2 * rows * columns for rows, columns in shapes)

    def _group(self, columns: int) -> int:
        return next(size for size in int4_product.GROUPS if size <= self.group and columns % size == 0)


def packing_of(weights: str, device: torch.device) -> Packing | None:
    """How a model on a device is rounded that is asked for with such weights; None: its layers keep their own. A CPU's
    compiled loops have products of their own with 8 bits (`products`), and of a few bits with a file's."""
    return Packing(weights) if weights == PACKED or (weights == "int8" and device.type != "cpu") else None


def require_device(packing: Packing, device: torch.device, dtype: str) -> None:
    """Raise ValueError, in one line, if a device cannot multiply with such weights in a model of that dtype."""
    if packing.weights != PACKED:
        return
    if device.type != "cuda":
        raise ValueError(
            f"weights=int4 is for a GPU, not {device}; leave it out, or take a GGUF file of 4 bits (weights=file)"
        )
    if dtype != "bfloat16":
        raise ValueError(f"weights=int4 needs dtype bfloat16, not {dtype}; leave it out, or use weights=int8")
    if (found := torch.cuda.get_device_capability(device)) < _OLDEST:
        raise ValueError(
            f"weights=int4 needs compute capability 8.0 (Ampere) or later, not {found[0]}.{found[1]}; use weights=int8"
        )


def packed_names(decoder: Any) -> frozenset[str]:
    """The names of the weights that are rounded."""
    return frozenset(f"{name}.weight" for name, _ in _packable(decoder))


def replace(decoder: nn.Module, name: str, layer: PackedLinear | nn.Linear) -> None:
    """Let a decoder have a linear layer in the place of that with the weight `name`; its bias stays."""
    path, _, last = name.removesuffix(".weight").rpartition(".")
    parent = decoder.get_submodule(path)
    layer.bias = getattr(parent, last).bias
    setattr(parent, last, layer)


def packed_twin(decoder: Any, packing: Packing) -> Any:
    """Make the same decoder with packed weights beside the ones it has; all else is the same memory."""
    packing.check(decoder)
    found = copy.deepcopy(decoder, {id(weight): weight for weight in decoder.parameters()})
    for name, layer in _packable(decoder):
        replace(found, f"{name}.weight", packing.pack(layer.weight, None, layer.weight.device))
    found.packing = packing
    return found


def packed_product(layers: list[Any]) -> Product:
    """The product with the weights of linear layers over the same input, packed or not."""
    if isinstance(layers[0], PackedLinear):
        return PackedProduct(joined(layers))
    return fused(Product)(layers)


def _packable(decoder: Any) -> Iterator[tuple[str, Any]]:
    for name, part in decoder.model.layers.named_modules(prefix="model.layers"):
        if type(part) is Linear and name.rpartition(".")[2] not in _LEFT:
            yield name, part
