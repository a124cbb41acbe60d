"""The rotary tables of a decode step: rows for one new token of each sequence.

Neighbouring positions follow each other, and a row alone takes as long to compute as some dozens. So they are computed
by the block and kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .lean_layer import for_lean
from .rotary import QUERIES, Rotary, RotaryTables

_BLOCK = 64
"""Positions of a block."""
_KEPT = 64
"""Blocks that are kept."""


class StepTables(NamedTuple):
    """The rotary tables for one new token of each sequence."""

    rotary: RotaryTables
    lean: RotaryTables
    """The tables in the form that `lean_layer.turn` takes."""

    def of(self, b: int) -> StepTables:
        """The tables of sequence `b` alone."""
        row = slice(b, b + 1)
        return StepTables(*({kind: (cos[row], sin[row]) for kind, (cos, sin) in some.items()} for some in self))


class KeptTables:
    """The tables of one model's steps.

    Args:
        dims: of heads, by kind of layer. dtype: of the tables.
    """

    def __init__(self, rotary: Rotary, dims: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> None:
        self._rotary, self._dims, self._dtype, self._device = rotary, dims, dtype, device
        self._blocks: dict[tuple[int, int], StepTables] = {}

    def at(self, positions: list[int], reaches: list[int]) -> StepTables:
        """The tables for one token at each of the positions; `reaches` are those that turn them."""
        rows = [
            self._block(position // _BLOCK, reach).of(position % _BLOCK)
            for position, reach in zip(positions, reaches, strict=True)
        ]
        if len(rows) == 1:
            return rows[0]
        return StepTables(_joined([row.rotary for row in rows]), _joined([row.lean for row in rows]))

    def _block(self, number: int, reach: int) -> StepTables:
        key = number, reach
        if key not in self._blocks:
            if len(self._blocks) == _KEPT:
                del self._blocks[next(iter(self._blocks))]
            positions = torch.arange(number * _BLOCK, (number + 1) * _BLOCK, device=self._device)
            rotary = self._rotary(positions.unsqueeze(1), self._dtype, [reach])
            dims = self._dims
            lean = {kind: both if kind == QUERIES else for_lean(*both, dims[kind]) for kind, both in rotary.items()}
            self._blocks[key] = StepTables(rotary, lean)
        return self._blocks[key]


def _joined(each: list[RotaryTables]) -> RotaryTables:
    return {
        kind: (torch.cat([tables[kind][0] for tables in each]), torch.cat([tables[kind][1] for tables in each]))
        for kind in each[0]
    }
