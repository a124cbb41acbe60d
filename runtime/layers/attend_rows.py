"""What a layer's attention reads, as rows of a compiled step's table.

Shapes  G KV heads, R query heads each, D head dim, L page size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ..process.apart import fp32

SPAN = 128
"""Tokens of a part. It follows from nothing but must never follow from the machine: sums are cut here."""
_ALONE = 1e4
"""A maximum of scores beside which exp of any other's difference is 0."""
KV_KINDS = {torch.float32: r.F32, torch.bfloat16: r.BF16}


def is_kind(dtype: str) -> bool:
    """True if rows can say that keys and values are of this dtype."""
    return getattr(torch, dtype) in KV_KINDS


class Compiled(Protocol):
    """A compiled operation."""

    @property
    def address(self) -> int:
        """Its address, compiled by then."""


class Operations(Protocol):
    """The compiled operations that layers fill rows with, and the bytes of its own that a thread needs for them."""

    @property
    def attend(self) -> Compiled: ...
    @property
    def score_bounds(self) -> Compiled: ...
    @property
    def make_tables(self) -> Compiled: ...
    @property
    def score_codes(self) -> Compiled: ...
    @property
    def choose(self) -> Compiled: ...
    def attend_bytes(self, repeats: int, dim: int) -> int: ...
    def score_bytes(self, repeats: int, dim: int, span: int, code_dim: int = 0) -> int: ...
    def choice_bytes(self, units: int, parts: int) -> int: ...


class Room:
    """Memory that rows of one step leave results in. What a longer step before it had stays until the next one begins:
    rows that are filled in already have its address."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._outgrown: list[Tensor] = []
        self.version = 0
        """Another one whenever an address is another one."""

    def begin_step(self) -> None:
        self._outgrown.clear()

    def floats(self, name: str, count: int) -> int:
        """The address of at least `count` fp32 numbers, at a multiple of 64 bytes."""
        held = self._held.get(name)
        if held is None or held.numel() < count + 16:
            if held is not None:
                self._outgrown.append(held)
            held = self._held[name] = fp32(count * 5 // 4 + 16)
            self.version += 1
        return (held.data_ptr() + 63) // 64 * 64


@dataclass(slots=True)
class Attending:
    """One sequence's attention in one layer: its query, and where its parts go."""

    q: Tensor
    """fp32 `[H, D]`, rotated; computed by the time the rows are worked through."""
    scale: float
    parts: Tensor
    """fp32, with room for `[G, parts, R, 2 + D]`."""
    groups: int
    out: Tensor
    """fp32 `[H * D]`: the result, where there are no parts."""
    operations: Operations
    room: Room
    """Of this sequence: it is used by one layer after another."""

    @property
    def scale_bits(self) -> int:
        """The scale as a row holds it."""
        return r.bits(self.scale)

    def merged(self, parts: int) -> tuple[Tensor, Tensor]:
        """Out fp32 `[G, R, D]` and lse fp32 `[G, R]` from the parts, for whoever watches."""
        (heads, dim), groups = self.q.shape, self.groups
        repeats = heads // groups
        each = self.parts[: groups * parts * repeats * (2 + dim)].view(groups, parts, repeats, 2 + dim)
        lses = each[..., 0] + each[..., 1].log()
        shares = torch.softmax(lses, 1).unsqueeze(-1) / each[..., 1:2]
        return (each[..., 2:] * shares).sum(1), lses.logsumexp(1)

    def as_part(self) -> int:
        """Make what is in `out` a part of its own, beside which nothing counts, a sink neither: whoever merges the
        parts of others gives it back as it is. Returns the number of parts."""
        (heads, dim), groups = self.q.shape, self.groups
        part = self.parts[: heads * (2 + dim)].view(groups, 1, heads // groups, 2 + dim)
        part[..., 0], part[..., 1] = _ALONE, 1
        part[..., 2:] = self.out.view(groups, 1, heads // groups, dim)
        return 1

    def row(self, row: np.ndarray, *, unit: int, page: int, parts: int = 0, first: int = 0) -> None:
        """Begin a row that attends, with nothing to read yet."""
        heads, dim = self.q.shape
        assert parts <= self.most_parts, "more parts than there is room for"
        row[:] = 0
        row[[r.OPERATION, r.BARRIER]] = self.operations.attend.address, 1
        row[[r.MARK, r.MEMORY]] = r.M_ATTENTION, self.operations.attend_bytes(heads // self.groups, dim)
        row[[r.A_GROUPS, r.A_REPEATS, r.A_DIM, r.A_PAGE]] = self.groups, heads // self.groups, dim, page
        row[[r.A_Q, r.A_SCALE]] = self.q.data_ptr(), self.scale_bits
        row[[r.A_UNIT, r.A_SPAN, r.A_TAIL_SPAN]] = unit, max(SPAN, unit), SPAN
        row[[r.A_OUT, r.A_PARTS, r.A_FIRST]] = self.parts.data_ptr(), parts, first

    def read(self, row: np.ndarray, count: int, places: int, pitch: int, v_after: int, kind: int) -> None:
        """Read `count` units of pages whose addresses are at `places`."""
        row[r.ITEMS] += self.groups * num_parts(count, int(row[r.A_UNIT]))
        row[[r.A_COUNT, r.A_PLACES, r.A_PITCH]] = count, places, pitch
        row[[r.A_V_AFTER, r.A_KV_KIND]] = v_after, kind

    def behind(self, row: np.ndarray, rows: Tensor, count: int) -> None:
        """Read the first `count` of the rows `[2, G, n, D]` behind them."""
        row[r.ITEMS] += self.groups * num_parts(count, 1)
        size = rows.element_size()
        row[[r.A_TAIL, r.A_TAIL_LEN, r.A_TAIL_KIND]] = rows.data_ptr(), count, KV_KINDS[rows.dtype]
        row[[r.A_TAIL_PITCH, r.A_TAIL_V_AFTER]] = rows.stride(1) * size, rows.stride(0) * size

    @property
    def most_parts(self) -> int:
        """Parts that there is room for."""
        heads, dim = self.q.shape
        return self.parts.numel() // (heads * (2 + dim))


def most_parts(num_tokens: int) -> int:
    """The most parts that a sequence of so many tokens is read in, whatever its pages are. A part of units that do not
    divide SPAN holds more than half of it, and so does all of SPAN where units are longer."""
    return 2 * num_parts(num_tokens, 1) + 2


def num_parts(count: int, unit: int) -> int:
    """Parts that `count` units of so many tokens are read in."""
    return -(-count // max(1, SPAN // unit))
