"""Copy the units that a cache lacks into their entries, straight from pages in host memory.

Shapes  source [slots * S * G * U, W]: pages, a part for each unit, U units a page   table int32 [pages]: their slots
        ids int64, entries int32, lacking bool [G, n]   rows int64 [s, G, E]: where in out an entry's sides lie
        out [N, W] of the source's dtype, written: out[rows[i, g, entry]] = the unit's part of the i-th of the last s
        sides of head g, for each unit that is lacking
Host    Where the source is pinned, the kernel reads it in place over the bus: no staging buffer, no pass of the CPU,
        no waiting, and only the parts that are wanted are moved. All of the source must be pinned (`Tensor.is_pinned`
        looks at its first byte) and stay as it is until the stream has passed the call.
Trust   0 <= ids < pages * U, entries in range, no two lacking units of a head in one: not checked, which would wait
        for the device
Triton  where the source is pinned or on the device; PyTorch elsewhere, through a copy on the source's device
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, reaches_from, tl

_BLOCK_WORDS = 1024
"""Words of 4 bytes that a program copies: 8 for each thread, two loads of 16 bytes."""


class Wanted(NamedTuple):
    """What is to be copied where."""

    ids: Tensor
    entries: Tensor
    lacking: Tensor
    table: Tensor
    rows: Tensor
    sides: int
    """S: sides of a page."""
    units: int
    """U: units of a page."""


def parts_of(ids: Tensor, table: Tensor, sides: int, units: int, *, last: int) -> Tensor:
    """The row of the source that holds each unit's part of each of the `last` sides, int64 `[last, G, n]`."""
    groups, device = len(ids), ids.device
    heads = torch.arange(groups, device=device).view(-1, 1)
    side = torch.arange(sides - last, sides, device=device).view(-1, 1, 1)
    return ((table[ids // units].long() * groups + heads) * sides + side) * units + ids % units


def fetch_units_reference(source: Tensor, wanted: Wanted, out: Tensor) -> None:
    """Entry by entry, with the unit that comes to it. Where none does it is copied onto itself, so that nothing depends
    on how many are lacking."""
    (kept, groups, entries), width = wanted.rows.shape, source.shape[1]
    ids, lacking = wanted.ids, wanted.lacking
    number = torch.arange(ids.shape[1], device=ids.device).expand(groups, -1)
    comes = torch.full((groups, entries + 1), -1, dtype=torch.int64, device=ids.device)
    comes.scatter_(1, wanted.entries.long().masked_fill(~lacking, entries), number.masked_fill(~lacking, -1))
    comes = comes[:, :entries]
    unit = ids.gather(1, comes.clamp(min=0)) if ids.shape[1] else torch.zeros_like(comes)
    parts = parts_of(unit, wanted.table, wanted.sides, wanted.units, last=kept).to(source.device).flatten()
    found = source.index_select(0, parts).to(out.device).view(kept, groups, entries, width)
    out[wanted.rows] = torch.where((comes >= 0).unsqueeze(-1), found, out[wanted.rows])


@jit
def _fetch_units_kernel(
    out: tl.tensor, source: tl.tensor, ids: tl.tensor, entries: tl.tensor, lacking: tl.tensor, table: tl.tensor,
    rows: tl.tensor, count: tl.tensor, groups: tl.tensor, num_entries: tl.tensor, width: tl.tensor, sides: tl.tensor,
    units: tl.tensor, skipped: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
) -> None:  # fmt: skip
    """Neighbouring threads read neighbouring words: whole packets of the bus. Where nothing is lacking nothing is
    read."""
    i_s, i_g = tl.program_id(1) // groups, tl.program_id(1) % groups
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_w = tl.program_id(2) * BLOCK_W + tl.arange(0, BLOCK_W)
    m_m = o_m < count
    m_m = m_m & tl.load(lacking + i_g * count + o_m, mask=m_m, other=0).to(tl.int1)
    b_id = tl.load(ids + i_g * count + o_m, mask=m_m, other=0)
    b_entry = tl.load(entries + i_g * count + o_m, mask=m_m, other=0).to(tl.int64)
    b_slot = tl.load(table + b_id // units, mask=m_m, other=0).to(tl.int64)
    b_part = ((b_slot * groups + i_g) * sides + skipped + i_s) * units + b_id % units
    b_row = tl.load(rows + (i_s * groups + i_g).to(tl.int64) * num_entries + b_entry, mask=m_m, other=0)
    m_w = m_m[:, None] & (o_w < width)[None, :]
    b_words = tl.load(source + b_part[:, None] * width + o_w[None, :], mask=m_w, other=0)
    tl.store(out + b_row[:, None] * width + o_w[None, :], b_words, mask=m_w)


def fetch_units_triton(source: Tensor, wanted: Wanted, out: Tensor) -> None:
    """As words of 4 bytes where parts are made of such, else byte by byte."""
    word = torch.int32 if (source.shape[1] * source.itemsize) % 4 == 0 else torch.uint8
    source, out = source.view(torch.uint8).view(word), out.view(torch.uint8).view(word)
    (kept, groups, num_entries), width, count = wanted.rows.shape, source.shape[1], wanted.ids.shape[1]
    block = min(_BLOCK_WORDS, block_of(width))
    at_once = _BLOCK_WORDS // block
    launch(
        _fetch_units_kernel, (cdiv(count, at_once), kept * groups, cdiv(width, block)), out, source, wanted.ids,
        wanted.entries, wanted.lacking, wanted.table, wanted.rows, count, groups, num_entries, width, wanted.sides,
        wanted.units, wanted.sides - kept, BLOCK_M=at_once, BLOCK_W=block, num_warps=4,
    )  # fmt: skip


def fetch_units(source: Tensor, wanted: Wanted, out: Tensor) -> None:
    """Raises ValueError on dtypes or memory that do not fit the contract."""
    if source.dtype != out.dtype or source.shape[1:] != out.shape[1:]:
        raise ValueError(
            f"source {list(source.shape)} {source.dtype}, out {list(out.shape)} {out.dtype}: "
            "expected [.., W] of one dtype"
        )
    tables = (wanted.ids, wanted.entries, wanted.lacking, wanted.table, wanted.rows)
    if not all(tensor.is_contiguous() for tensor in (source, out, *tables)):
        raise ValueError("source, out and all tables are contiguous")
    reaches = out.is_cuda and reaches_from(out.device, source, *tables)
    (fetch_units_triton if reaches else fetch_units_reference)(source, wanted, out)
