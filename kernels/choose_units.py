"""Choose units (pages or tokens) by score, in rows of which only the device knows how long they are.

Shapes  scores fp32 [N, U]   totals int [N] <= U, units that each row has   wanted int [N]
        ->  ids int64 [N, most], counts int64 [N] = min(totals, wanted, most)
Rule    the first `sink` and the last `local` units of a row are always chosen, then those with the highest scores, of
        equal ones the first. NaN counts as lowest. The first counts[i] ids are ascending, those after them 0.
Order   a score's bits are turned into an integer, the *key*, that is ordered as the score is; a forced unit has the
        highest of all. So every comparison is exact, 0 equals -0, and where too many are forced the first are chosen.
Trust   0 <= totals <= U, wanted >= 0, and sink + local <= counts where a row has more: not checked, which would wait
        for the device. Scores from totals[i] on may hold anything and are not read.
U       is how many units there is room for. Nothing else depends on it.
Triton  four launches find the key of the last unit that is chosen, digit by digit from above: each counts digits of the
        keys that agree so far. A fifth emits the ids. Digits have 8 bits, since Triton 3.6 keeps a register for every
        32nd bin, and looks at all of them for each score: 2,048 bins would cost more than a launch that they save.
        Programs add up what those of the launch before have left for each part of a row: no atomics.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .launch import cdiv, jit, launch, num_splits, tl, uses_triton

_BINS = 256
_SHIFTS = (24, 16, 8, 0)
_BLOCK = 2048
"""The number of scores that a program holds."""
_MOST_PARTS = 32
"""Parts of a row: every program reads all counts of the launch before, 1 KiB for each part."""


def choose_units_reference(
    scores: Tensor, totals: Tensor, wanted: Tensor, *, most: int, sink: int, local: int
) -> tuple[Tensor, Tensor]:
    """The rule in whole tensors."""
    rows, room = scores.shape
    counts = torch.minimum(totals, wanted).long().clamp(max=most)
    if not min(room, most):
        return torch.zeros(rows, most, dtype=torch.int64, device=scores.device), counts
    place, total = torch.arange(room, device=scores.device), totals.unsqueeze(1)
    exists = place < total
    bits = scores.view(torch.int32)
    key = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).masked_fill(scores == 0, 0)
    key = key.masked_fill(scores.isnan(), -(1 << 31))
    key = key.masked_fill((place < sink) | (place >= total - local), (1 << 31) - 1)
    best = key.masked_fill(~exists, -(1 << 31)).topk(min(most, room), 1).values
    last = best.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
    above, tied = exists & (key > last), exists & (key == last)
    lacking = counts.unsqueeze(1).int() - above.sum(1, keepdim=True, dtype=torch.int32)
    chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= lacking))
    number = torch.arange(1, most + 1, dtype=torch.int32, device=scores.device).repeat(rows, 1)
    ids = torch.searchsorted(chosen.cumsum(1, dtype=torch.int32), number)
    return ids.masked_fill(number > counts.unsqueeze(1), 0), counts


@jit
def _part(total: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Where this program's part of a row of `total` units begins and ends."""
    size = tl.cdiv(tl.cdiv(total, BLOCK), tl.num_programs(1)) * BLOCK
    begin = tl.program_id(1) * size
    return begin, tl.minimum(begin + size, total)


@jit
def _keys(
    p_s: tl.tensor, s_u: tl.tensor, o_u: tl.tensor, end: tl.tensor, total: tl.tensor, sink: tl.tensor, local: tl.tensor
) -> tl.tensor:
    """The keys of units `o_u`, uint32: 0 for NaN, then from -inf up to inf, then what is forced."""
    bits = tl.load(p_s + o_u.to(tl.int64) * s_u, mask=o_u < end, other=0.0).to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    ordered = tl.where(size == 0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    key = ordered.to(tl.uint32, bitcast=True) ^ 0x80000000
    key = tl.where(size > 0x7F800000, 0, key)
    return tl.where((o_u < sink) | (o_u >= total - local), 0xFFFFFFFF, key)


@jit
def _descend(known: tl.tensor, digits: tl.tensor, BLOCK_P: tl.constexpr, BINS: tl.constexpr) -> tl.tensor:
    """From the counts of one digit: how often each part of the row has each [P, BINS], how the last chosen key goes
    on, its digits so far, and how many are lacking when all keys above those are chosen."""
    o_p, o_b = tl.arange(0, BLOCK_P), tl.arange(0, BINS)
    held = tl.load(digits + o_p[:, None] * BINS + o_b[None, :], mask=(o_p < tl.num_programs(1))[:, None], other=0)
    prefix, lacking = tl.load(known), tl.load(known + 1)
    of_row = tl.sum(held, 0)
    higher = tl.sum(of_row, 0) - tl.cumsum(of_row, 0)  # keys with a higher digit
    digit = tl.max(tl.where(higher + of_row >= lacking, o_b, 0), 0)
    return held, digit, prefix * BINS + digit, lacking - tl.sum(tl.where(o_b > digit, of_row, 0), 0)


@partial(jit, unaligned=["s_n", "shift"])
def _count_digits_kernel(
    scores: tl.tensor, totals: tl.tensor, wanted: tl.tensor, known_before: tl.tensor, digits_before: tl.tensor,
    known: tl.tensor, digits: tl.tensor, above: tl.tensor, s_n: tl.tensor, s_u: tl.tensor, t_n: tl.tensor,
    w_n: tl.tensor, most: tl.tensor, sink: tl.tensor, local: tl.tensor, shift: tl.tensor,
    BLOCK: tl.constexpr, BLOCK_P: tl.constexpr, BINS: tl.constexpr,
) -> None:  # fmt: skip
    """Counts in one part of a row: keys by their digit at `shift` if those above it are as known, and keys that are
    higher by those above it."""
    i_n, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = tl.load(totals + i_n * t_n).to(tl.int32)
    if digits_before is None:
        prefix = tl.full([], 0, dtype=tl.int64)
        lacking = tl.minimum(tl.minimum(total, tl.load(wanted + i_n * w_n).to(tl.int32)), most).to(tl.int64)
    else:
        _, _, prefix, lacking = _descend(
            known_before + i_n * 2, digits_before + i_n * tl.num_programs(1) * BINS, BLOCK_P, BINS
        )
    if i_p == 0:
        tl.store(known + i_n * 2, prefix)
        tl.store(known + i_n * 2 + 1, lacking)
    head = prefix.to(tl.uint32)
    begin, end = _part(total, BLOCK)
    b_digits, b_above = tl.zeros([BINS], dtype=tl.int32), tl.zeros([BLOCK], dtype=tl.int32)
    for i_u in range(begin, end, BLOCK):
        o_u = i_u + tl.arange(0, BLOCK)
        m_u = o_u < end
        b_key = _keys(scores + i_n * s_n, s_u, o_u, end, total, sink, local) >> shift
        b_head = b_key // BINS
        b_digits += tl.histogram((b_key & (BINS - 1)).to(tl.int32), BINS, mask=m_u & (b_head == head))
        b_above += (m_u & (b_head > head)).to(tl.int32)
    row = i_n * tl.num_programs(1) + i_p
    tl.store(digits + row * BINS + tl.arange(0, BINS), b_digits)
    tl.store(above + row, tl.sum(b_above, 0))


@partial(jit, unaligned=["s_n"])
def _emit_units_kernel(
    ids: tl.tensor, counts: tl.tensor, scores: tl.tensor, totals: tl.tensor, wanted: tl.tensor, known: tl.tensor,
    digits: tl.tensor, above: tl.tensor, s_n: tl.tensor, s_u: tl.tensor, t_n: tl.tensor, w_n: tl.tensor,
    most: tl.tensor, sink: tl.tensor, local: tl.tensor,
    BLOCK: tl.constexpr, BLOCK_P: tl.constexpr, BINS: tl.constexpr,
) -> None:  # fmt: skip
    """Writes the ids of one part of a row behind those of the parts before it, and zeros behind the last."""
    i_n, i_p, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    total = tl.load(totals + i_n * t_n).to(tl.int32)
    count = tl.minimum(tl.minimum(total, tl.load(wanted + i_n * w_n).to(tl.int32)), most)
    held, digit, prefix, lacking = _descend(known + i_n * 2, digits + i_n * parts * BINS, BLOCK_P, BINS)
    last, lacking = prefix.to(tl.uint32), lacking.to(tl.int32)
    o_p, o_b = tl.arange(0, BLOCK_P), tl.arange(0, BINS)
    b_above = tl.load(above + i_n * parts + o_p, mask=o_p < parts, other=0)
    b_above += tl.sum(tl.where(o_b[None, :] > digit, held, 0), 1)  # [P], as `ties`
    ties = tl.sum(tl.where(o_b[None, :] == digit, held, 0), 1)
    tied = tl.sum(tl.where(o_p < i_p, ties, 0), 0)
    first = tl.sum(tl.where(o_p < i_p, b_above, 0), 0) + tl.minimum(tied, lacking)
    begin, end = _part(total, BLOCK)
    for i_u in range(begin, end, BLOCK):
        o_u = i_u + tl.arange(0, BLOCK)
        m_u = o_u < end
        b_key = _keys(scores + i_n * s_n, s_u, o_u, end, total, sink, local)
        is_tied = (m_u & (b_key == last)).to(tl.int32)
        is_chosen = m_u & ((b_key > last) | ((is_tied > 0) & (tied + tl.cumsum(is_tied, 0) <= lacking)))
        at = first + tl.cumsum(is_chosen.to(tl.int32), 0) - 1
        tl.store(ids + i_n * most + at, o_u.to(tl.int64), mask=is_chosen)
        tied += tl.sum(is_tied, 0)
        first += tl.sum(is_chosen.to(tl.int32), 0)
    for i_m in range(i_p * BLOCK, most, parts * BLOCK):
        o_m = i_m + tl.arange(0, BLOCK)
        tl.store(ids + i_n * most + o_m, tl.zeros([BLOCK], dtype=tl.int64), mask=(o_m >= count) & (o_m < most))
    if i_p == 0:
        tl.store(counts + i_n, count.to(tl.int64))


def choose_units_triton(
    scores: Tensor, totals: Tensor, wanted: Tensor, *, most: int, sink: int, local: int, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """The rule by Triton. Scores may be strided, totals and wanted expanded. `splits` cuts each row into so many parts,
    at most 32 (None: to fill the device)."""
    (rows, room), device = scores.shape, scores.device
    parts = min(_MOST_PARTS, splits or num_splits(rows, cdiv(room, _BLOCK), device))
    known = torch.empty(len(_SHIFTS), rows, 2, dtype=torch.int64, device=device)
    digits = torch.empty(len(_SHIFTS), rows, parts, _BINS, dtype=torch.int32, device=device)
    above = torch.empty(rows, parts, dtype=torch.int32, device=device)
    ids = torch.empty(rows, most, dtype=torch.int64, device=device)
    counts = torch.empty(rows, dtype=torch.int64, device=device)
    numbers = *scores.stride(), totals.stride(0), wanted.stride(0), most, sink, local
    blocks = {"BLOCK": _BLOCK, "BLOCK_P": _MOST_PARTS, "BINS": _BINS, "num_warps": 8}
    before: tuple[Tensor | None, Tensor | None] = None, None
    for shift, *found in zip(_SHIFTS, known, digits, strict=True):
        of = scores, totals, wanted, *before, *found, above
        launch(_count_digits_kernel, (rows, parts), *of, *numbers, shift, **blocks)
        before = found[0], found[1]
    launch(_emit_units_kernel, (rows, parts), ids, counts, scores, totals, wanted, *before, above, *numbers, **blocks)
    return ids, counts


def choose_units(
    scores: Tensor, totals: Tensor, wanted: Tensor, *, most: int, sink: int, local: int
) -> tuple[Tensor, Tensor]:
    """Choose at most `most` units of each row. Raises ValueError on shapes or types that do not fit the contract."""
    if scores.dim() != 2 or scores.dtype != torch.float32:
        raise ValueError(f"scores: expected fp32 [N, U], got {scores.dtype} {list(scores.shape)}")
    for name, given in (("totals", totals), ("wanted", wanted)):
        if given.shape != scores.shape[:1]:
            raise ValueError(f"{name}: expected [{len(scores)}], got {list(given.shape)}")
    if min(most, sink, local) < 0:
        raise ValueError(f"expected most, sink and local >= 0, got {most}, {sink}, {local}")
    choose = choose_units_triton if uses_triton(scores, totals, wanted) else choose_units_reference
    return choose(scores, totals, wanted, most=most, sink=sink, local=local)
