"""Find a place among the entries of a cache for each unit that a step reads, without asking the host.

Shapes  ids int64 [G, n]   ->   entries int32 [G, n] and lacking bool [G, n]
        counts int64 [G] <= n: the first ids of a row that count (None: all); those behind them get entry 0 and lack not
        Places, changed in place: entry_of int32 [G, U + 1], unit_of and last_use int32 [G, E + 1], hand int32 [G],
        clock int32 [1]; n <= E. The last column of each table is nobody's: it takes what a masked write leaves.
Rule    a unit that is there stays where it is. Those that lack take, in their order, the first entries from the hand on
        that neither this step nor the one before has read; where there are too few of these, that this step has not.
        The hand then stands behind the last one taken. So it is the same wherever it is computed.
Trust   0 <= ids < U, also those that do not count; each that counts once in a row, at most E in all reads of a step:
        not checked, which would wait for the device. A unit that is named twice while it lacks takes two entries, one
        of which is found again.
Triton  a program for each KV head goes over the entries twice; PyTorch elsewhere
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .launch import block_of, jit, launch, tl, uses_triton

ABSENT = -1
NEVER = -(1 << 30)
"""Before every step."""
_BLOCK = 1024


class Places(NamedTuple):
    """What lies where, of one layer of one sequence."""

    entry_of: Tensor
    """int32 `[G, U + 1]`: the entry that holds a unit, or `ABSENT`."""
    unit_of: Tensor
    """int32 `[G, E + 1]`: the unit that an entry holds, or `ABSENT`."""
    last_use: Tensor
    """int32 `[G, E + 1]`: the step that last read it, or `NEVER`."""
    hand: Tensor
    """int32 `[G]`: where the search for room goes on."""
    clock: Tensor
    """int32 `[1]`: the number of the step."""

    @classmethod
    def empty(cls, groups: int, units: int, entries: int, device: torch.device) -> Places:
        def filled(columns: int, number: int) -> Tensor:
            return torch.full((groups, columns + 1), number, dtype=torch.int32, device=device)

        hand = torch.zeros(groups, dtype=torch.int32, device=device)
        clock = torch.zeros(1, dtype=torch.int32, device=device)
        return cls(filled(units, ABSENT), filled(entries, ABSENT), filled(entries, NEVER), hand, clock)


def place_units_reference(ids: Tensor, places: Places, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rule in whole tensors. Masked writes go to the last columns."""
    entry_of, unit_of, last_use, hand, clock = places
    units, entries, n = entry_of.shape[1] - 1, unit_of.shape[1] - 1, ids.shape[1]
    held = entry_of.gather(1, ids)
    lacking = held < 0
    here = ~lacking
    if counts is not None:
        does_count = torch.arange(n, device=ids.device) < counts[:, None]
        lacking, here, held = lacking & does_count, here & does_count, held.where(does_count, 0)
    now = clock.expand(held.shape)
    last_use.scatter_(1, held.masked_fill(~here, entries).long(), now)
    wanted = lacking.sum(1, keepdim=True)
    used = last_use[:, :entries]
    is_old = used < clock - 1
    is_free = torch.where(is_old.sum(1, keepdim=True) >= wanted, is_old, used < clock)
    turned = torch.arange(entries, device=ids.device)
    around = (turned + hand[:, None]) % entries
    is_free = is_free.gather(1, around)
    rank = is_free.cumsum(1) - 1
    goes = is_free & (rank < wanted)
    taken = torch.zeros(len(ids), n + 1, dtype=torch.int64, device=ids.device)
    taken.scatter_(1, rank.masked_fill(~goes, n), around)
    gone = unit_of.gather(1, around.masked_fill(~goes, entries))
    entry_of.scatter_(1, gone.masked_fill(~goes | (gone < 0), units).long(), torch.full_like(gone, ABSENT))
    hand.copy_((hand + 1 + torch.where(goes, turned, -1).amax(1)) % entries)
    new = taken.gather(1, (lacking.cumsum(1) - 1).clamp(min=0))
    found = torch.where(lacking, new.int(), held)
    where = new.masked_fill(~lacking, entries)
    unit_of.scatter_(1, where, ids.int())
    last_use.scatter_(1, where, now)
    entry_of.scatter_(1, ids.masked_fill(~lacking, units), new.int())
    return found, lacking


@jit
def _place_units_kernel(
    entries: tl.tensor, lacking: tl.tensor, taken: tl.tensor, ids: tl.tensor, counts: tl.tensor, entry_of: tl.tensor,
    unit_of: tl.tensor, last_use: tl.tensor, hand: tl.tensor, clock: tl.tensor, count: tl.tensor, units: tl.tensor,
    places: tl.tensor,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
) -> None:  # fmt: skip
    """What one loop writes the next one reads: the barriers stand between them."""
    i_g = tl.program_id(0).to(tl.int64)
    ids, entries, lacking, taken = ids + i_g * count, entries + i_g * count, lacking + i_g * count, taken + i_g * count
    entry_of, unit_of, last_use = (
        entry_of + i_g * (units + 1),
        unit_of + i_g * (places + 1),
        last_use + i_g * (places + 1),
    )
    now, first = tl.load(clock), tl.load(hand + i_g)
    held = count if counts is None else tl.load(counts + i_g).to(tl.int32)

    wanted = 0
    for i in range(0, count, BLOCK_N):
        o_n = i + tl.arange(0, BLOCK_N)
        m_n = o_n < held
        b_entry = tl.load(entry_of + tl.load(ids + o_n, mask=m_n, other=0), mask=m_n, other=0)
        lacks = m_n & (b_entry < 0)
        tl.store(last_use + b_entry, now + tl.zeros([BLOCK_N], dtype=tl.int32), mask=m_n & (b_entry >= 0))
        tl.store(entries + o_n, b_entry, mask=o_n < count)
        tl.store(lacking + o_n, lacks, mask=o_n < count)
        wanted += tl.sum(lacks.to(tl.int32), 0)
    tl.debug_barrier()

    old = 0
    for i in range(0, places, BLOCK_E):
        o_e = i + tl.arange(0, BLOCK_E)
        b_use = tl.load(last_use + o_e, mask=o_e < places, other=now)
        old += tl.sum((b_use < now - 1).to(tl.int32), 0)
    before = tl.where(old >= wanted, now - 1, now)

    ranked, last = 0, -1
    for i in range(0, places, BLOCK_E):
        o_e = i + tl.arange(0, BLOCK_E)
        m_e = o_e < places
        around = (o_e + first) % places
        is_free = m_e & (tl.load(last_use + around, mask=m_e, other=now) < before)
        rank = ranked + tl.cumsum(is_free.to(tl.int32), 0) - 1
        goes = is_free & (rank < wanted)
        tl.store(taken + rank, around, mask=goes)
        gone = tl.load(unit_of + around, mask=goes, other=-1)
        tl.store(entry_of + gone, tl.full([BLOCK_E], -1, dtype=tl.int32), mask=goes & (gone >= 0))
        ranked += tl.sum(is_free.to(tl.int32), 0)
        last = tl.maximum(last, tl.max(tl.where(goes, o_e, -1), 0))
    tl.store(hand + i_g, (first + 1 + last) % places)
    tl.debug_barrier()

    ranked = 0
    for i in range(0, held, BLOCK_N):
        o_n = i + tl.arange(0, BLOCK_N)
        m_n = o_n < held
        lacks = m_n & (tl.load(entries + o_n, mask=m_n, other=0) < 0)
        rank = ranked + tl.cumsum(lacks.to(tl.int32), 0) - 1
        b_new = tl.load(taken + rank, mask=lacks, other=0)
        b_id = tl.load(ids + o_n, mask=lacks, other=0)
        tl.store(unit_of + b_new, b_id.to(tl.int32), mask=lacks)
        tl.store(entry_of + b_id, b_new, mask=lacks)
        tl.store(last_use + b_new, now + tl.zeros([BLOCK_N], dtype=tl.int32), mask=lacks)
        tl.store(entries + o_n, b_new, mask=lacks)
        ranked += tl.sum(lacks.to(tl.int32), 0)


def place_units_triton(ids: Tensor, places: Places, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    groups, count = ids.shape
    units, entries = places.entry_of.shape[1] - 1, places.unit_of.shape[1] - 1
    found, taken = (torch.empty(groups, count, dtype=torch.int32, device=ids.device) for _ in range(2))
    lacking = torch.empty(groups, count, dtype=torch.bool, device=ids.device)
    launch(
        _place_units_kernel, (groups,), found, lacking, taken, ids, counts, places.entry_of, places.unit_of,
        places.last_use, places.hand, places.clock, count, units, entries,
        BLOCK_N=min(_BLOCK, block_of(count)), BLOCK_E=min(_BLOCK, block_of(entries)), num_warps=4,
    )  # fmt: skip
    return found, lacking


def place_units(ids: Tensor, places: Places, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Give each unit of `ids` that counts an entry. Raises ValueError if ids are more than entries, or on memory that
    does not fit the contract."""
    entries = places.unit_of.shape[1] - 1
    if ids.shape[1] > entries:
        raise ValueError(f"{ids.shape[1]} units of each head do not fit {entries} entries")
    if not all(tensor.is_contiguous() for tensor in (ids, *places, *(() if counts is None else (counts,)))):
        raise ValueError("ids, counts and all tables are contiguous")
    place = place_units_triton if uses_triton(ids, counts, *places) else place_units_reference
    return place(ids, places, counts)
