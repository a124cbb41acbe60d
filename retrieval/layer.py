"""The facts about a layer that its index may know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Rotation(Protocol):
    """A way to apply positions to keys (RoPE). It is linear and invertible.

    Keys are `[G, n, D]`, positions int64 `[n]` or `[G, n]`; results are fp32.
    """

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor: ...

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor: ...

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Every tensor that is read besides the arguments. They stay where they are as long as the rotation exists."""
        ...


class NoRotation:
    """The rotation of a layer that has no positions."""

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        return keys.float()

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        return keys.float()

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class IndexedLayer:
    """One layer of a model, as an index sees it."""

    number: int = 0
    rotation: Rotation = field(default_factory=NoRotation)
    profile: Mapping[str, Tensor] | None = None
    """Tensors that `stratakv calibrate` learned about this layer, for indexes that need them; None without a
    profile."""
    place: int = 0
    """The layer's number among the layers that have an index: those that keep all of a text."""
    count: int = 1
    """How many of these the model has."""
