"""Checks on a saved state before an index works with it: its bytes may come from anywhere.

Names, dtypes, shapes and ranges are checked, so that nothing is read beside a tensor. It cannot be told whether
numbers in range are the right ones; wrong ones make an index find other tokens, no more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """The facts that decide the shapes of a layer's states."""

    keys: Tensor
    """An empty tensor `[G, 0, D]` of the dtype and on the device that keys have."""
    num_tokens: int
    """Number of sealed tokens."""
    repeats: int
    """Number of query heads per KV head."""

    @property
    def groups(self) -> int:
        return self.keys.shape[0]

    @property
    def dim(self) -> int:
        return self.keys.shape[2]


class Stored(NamedTuple):
    """One expected tensor of a state: dtype, shape and, where given, the smallest value and a bound that all values are
    below."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    low: int | None = None
    below: int | None = None


def check_stored(tensors: dict[str, Tensor], expected: dict[str, Stored]) -> None:
    """Raise ValueError, which names a tensor, unless `tensors` are as `expected`."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"{name[:60]!r}: {'is not there' if name in expected else 'unknown'}")
    for name, one in expected.items():
        _check(name, tensors[name], one)


def _check(name: str, tensor: Tensor, one: Stored) -> None:
    if tensor.dtype != one.dtype or tuple(tensor.shape) != one.shape:
        raise ValueError(f"{name!r}: {tensor.dtype} {tuple(tensor.shape)}, expected {one.dtype} {one.shape}")
    if not tensor.numel():
        return
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name!r}: has a value that is not finite")
    if one.low is not None and bool((tensor < one.low).any()):
        raise ValueError(f"{name!r}: has a value below {one.low}")
    if one.below is not None and bool((tensor >= one.below).any()):
        raise ValueError(f"{name!r}: has a value of {one.below} or more")
