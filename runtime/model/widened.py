"""Copies of decoder layers for prefill, in the dtype that multiplies matrices fastest.

Some CPUs multiply 16-bit vectors (decode) three times as fast as fp32 ones, because half the bytes are read, but 16-bit
matrices (prefill) five times as slowly. Layer-major prefill needs one layer at a time, so one copy is affordable. What
is in a file is widened into such a copy, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..process.apart import fp32
from .mlp import Experts

if TYPE_CHECKING:
    from .file_weights import FileWeights


class Widened:
    """Makes copies of a model's layers in `dtype`. They take turns in the same memory: one is good until the next is
    made.

    Args:
        in_file: has the layers' matrices, whose own have no memory then.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, in_file: FileWeights | None) -> None:
        self._dtype, self._device, self._in_file = dtype, device, in_file
        self._held: dict[tuple[str, torch.Size], nn.Parameter] = {}
        self._copies: dict[nn.Module, nn.Module] = {}
        """Of each layer that was asked for, without numbers of its own: making one takes as long as a small layer takes
        for some rows."""
        self._last: nn.Module | None = None
        """The layer of whose numbers there is a copy now."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the memory that the copies take turns in."""
        return sum(weight.nbytes for weight in self._held.values())

    def __call__(self, layer: nn.Module) -> nn.Module:
        """A copy of `layer`. Experts are its own: as few of them serve a token, they are never widened as a whole."""
        self._last = layer
        shared = _experts(layer)
        own = {id(weight) for part in shared.values() for weight in part.parameters()}
        wide = {
            id(weight): self._wide(name, weight) for name, weight in layer.named_parameters() if id(weight) not in own
        }
        if layer not in self._copies:
            self._copies[layer] = copy.deepcopy(layer, {**wide, **shared})
        return self._copies[layer]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Copies that are made inside leave the one from before as it was."""
        last = self._last
        yield
        if last is not None and self._last is not last:
            self(last)  # in the same memory

    def _wide(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """One parameter's numbers in the memory for its name and shape."""
        key = name, parameter.shape
        if key not in self._held:
            room = torch.empty(parameter.shape, dtype=self._dtype, device=self._device)
            self._held[key] = nn.Parameter(room, requires_grad=False)
        wide = self._held[key]
        matrix = None if self._in_file is None else self._in_file.of(parameter)
        if matrix is None:
            wide.copy_(parameter)
        elif self._dtype is torch.float32:
            matrix.widen(wide)
        else:
            exact = fp32(*wide.shape)
            matrix.widen(exact)
            wide.copy_(exact)
        return wide


def _experts(layer: Any) -> dict[int, nn.Module]:
    """The experts of a layer, by identity, as `copy.deepcopy` takes what it is not to copy."""
    return {id(layer.mlp.experts): layer.mlp.experts} if isinstance(layer.mlp, Experts) else {}


def multiplies_slowly(device: torch.device, dtype: torch.dtype) -> bool:
    """True if matrix products in `dtype` are slower than in fp32 on this hardware."""
    if device.type != "cpu" or dtype == torch.float32:
        return False
    checks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return not getattr(torch.ops.mkldnn, checks[dtype])()
