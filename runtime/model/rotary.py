"""The cos and sin of positions, for every kind of table that `rope` knows.

The frequencies are made by transformers' own functions, which load quickly, from what `rope` has read: from nothing
else, and without a state. transformers' modules remember the longest text they have seen; here the tables of a text
follow from its reach (`Rope.reach`) alone.

Shapes  B sequences, T tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..untrusted.family import EVERY_LAYER
from ..untrusted.rope import Rope, Table, rotary_width

RotaryTables = dict[str, tuple[Tensor, Tensor]]
"""cos and sin `[B, T, rotary dim]` by layer kind; and, of models whose queries grow, under `QUERIES` their factor
`[B, T, 1]`, twice."""
QUERIES = "queries"
_KEPT = 8
"""The number of reaches whose frequencies are kept: most kinds have one, `longrope` two, `dynamic` one for each
length."""


class Frequencies(NamedTuple):
    """What cos and sin are computed from."""

    inverse: Tensor
    """Fp32 `[rotary dim / 2]`."""
    scaling: float
    """The factor of cos and sin."""

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin `[.., rotary dim]` of positions `[..]`."""
        angles = positions[..., None].float() * self.inverse
        both = torch.cat((angles, angles), -1)
        return (both.cos() * self.scaling).to(dtype), (both.sin() * self.scaling).to(dtype)


class Rotary:
    """The tables of one model.

    Args:
        kinds: the kinds of its layers.
        dtype: the dtype of the tables; None: the one they are asked for in.
    """

    def __init__(self, rope: Rope, kinds: list[str], device: torch.device, dtype: torch.dtype | None) -> None:
        self.rope, self._device, self._dtype = rope, device, dtype
        self._kinds = sorted(set(kinds))
        self._known: dict[int, dict[str, Frequencies]] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype, reaches: list[int]) -> RotaryTables:
        """Tables for positions `[B, T]` of texts whose `reaches` are one for each row, or one for all."""
        if len(set(reaches)) == 1:
            return self._tables(positions, dtype, self._frequencies(reaches[0]))
        rows = [self._tables(positions[b : b + 1], dtype, self._frequencies(reach)) for b, reach in enumerate(reaches)]
        return {
            kind: (torch.cat([row[kind][0] for row in rows]), torch.cat([row[kind][1] for row in rows]))
            for kind in rows[0]
        }

    def frequencies(self, kind: str, reach: int) -> Frequencies:
        """Those of a kind of layers in texts of that reach. They last as long as the caller holds them."""
        known = self._frequencies(reach)
        return known.get(kind) or known[EVERY_LAYER]

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of tables that are asked for in this one."""
        return self._dtype or dtype

    def _tables(self, positions: Tensor, dtype: torch.dtype, frequencies: dict[str, Frequencies]) -> RotaryTables:
        made = {table: of.table(positions, self.dtype_of(dtype)) for table, of in frequencies.items()}
        found = {kind: made.get(kind) or made[EVERY_LAYER] for kind in self._kinds}
        if self.rope.query_growth is not None:
            beta, original = self.rope.query_growth
            factor = 1 + beta * torch.log(1 + torch.floor(positions / original))
            found[QUERIES] = factor[..., None].to(self.dtype_of(dtype)), factor[..., None].to(self.dtype_of(dtype))
        return found

    def _frequencies(self, reach: int) -> dict[str, Frequencies]:
        """The frequencies of each table."""
        if reach not in self._known:
            if len(self._known) == _KEPT:
                del self._known[next(iter(self._known))]
            dims = self.rope.head_dims
            self._known[reach] = {
                kind: self._made(table, reach, dims[kind]) for kind, table in self.rope.tables.items()
            }
        return self._known[reach]

    def _made(self, table: Table, reach: int, head_dim: int) -> Frequencies:
        said = _RopeSettings(table, head_dim, self.rope.max_positions, head_dim)
        kind = table["rope_type"]
        if kind in ROPE_INIT_FUNCTIONS:
            inverse, scaling = ROPE_INIT_FUNCTIONS[kind](said, None, seq_len=torch.tensor(reach) if reach else None)
            return Frequencies(inverse.to(self._device), float(scaling))
        width = rotary_width(table, head_dim)
        inverse = 1.0 / (table["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float) / width))
        return Frequencies(inverse.to(self._device), 1.0)


@dataclass(frozen=True, slots=True)
class _RopeSettings:
    """The part of a configuration that transformers' functions look at."""

    rope_parameters: Table
    head_dim: int
    max_position_embeddings: int
    hidden_size: int
    num_attention_heads: int = 1

    def standardize_rope_params(self) -> None:
        """Do nothing: transformers' functions ask for this first, and `rope` has done it."""
