"""The positions of one layer of a model, for whoever works on its keys before they are rotated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .rotary import Frequencies

Table = tuple[Tensor, Tensor]


class LayerRotation:
    """The way one layer of a model applies positions to keys, as a `retrieval.layer.Rotation`."""

    def __init__(self, frequencies: Frequencies, dtype: torch.dtype, turn: Callable[[Tensor, Table], Tensor]) -> None:
        """
        Args:
            frequencies, dtype: of cos and sin, which are `[B, n, rotary dim]` for positions `[B, n]`.
            turn: applies them to keys `[B, 1, n, D]`.
        """
        self._frequencies, self._dtype, self._turn = frequencies, dtype, turn

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self._frequencies.inverse,)

    def rotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Rotate un-rotated keys `[G, n, D]` at positions `[n]` or `[G, n]`. Returns fp32."""
        return self._apply(keys, self._at(keys, positions))

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Undo `rotate`. Tables may scale besides rotating (YaRN): cos^2 + sin^2 need not be 1."""
        cos, sin = self._at(keys, positions)
        square = cos * cos + sin * sin
        return self._apply(keys, (cos / square, -sin / square))

    def _at(self, keys: Tensor, positions: Tensor) -> Table:
        rows = positions.to(keys.device)
        return self._frequencies.table(rows if rows.dim() == 2 else rows.unsqueeze(0), self._dtype)

    def _apply(self, keys: Tensor, table: Table) -> Tensor:
        each = keys.float().unsqueeze(1)  # a batch of KV heads, each with positions of its own
        return self._turn(each, table).squeeze(1)
