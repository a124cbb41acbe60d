"""Attention of one token over chosen units of pages, read where they lie, and over the rows behind them.

The work is cut into parts of so many tokens, each with a softmax of its own; `products` puts them together. Cuts follow
from counts alone, so neither the number of threads nor the place of a page changes a bit.

Tokens are taken a block at a time. While one is summed up, the rows of the next one are fetched: they come from memory
about as slowly as they are summed up.

Shapes  G KV heads, R query heads each, D head dim, L page size, W: D up to the next multiple of ROW
"""

from __future__ import annotations

import math
from typing import Any

from numba import float32

from .native import LINE, exp, fetch, floats, halves, longs, loop, real, wholes, widen
from .operation import operation
from .record import (
    A_COUNT,
    A_DIM,
    A_FIRST,
    A_GROUPS,
    A_IDS,
    A_KV_KIND,
    A_OUT,
    A_OWN,
    A_PAGE,
    A_PARTS,
    A_PITCH,
    A_PLACES,
    A_Q,
    A_REPEATS,
    A_SCALE,
    A_SPAN,
    A_TAIL,
    A_TAIL_KIND,
    A_TAIL_LEN,
    A_TAIL_PITCH,
    A_TAIL_SPAN,
    A_TAIL_V_AFTER,
    A_UNIT,
    A_V_AFTER,
    BF16,
    F32,
    WIDTH,
)  # fmt: skip
from .tiles import BLOCK, ROW, ROWS, highest, products_of, weighted_of


def attend_bytes(repeats: int, dim: int) -> int:
    """Bytes of its own that a thread needs."""
    wide = -(-dim // ROW) * ROW
    return _PLACES + 4 * (repeats * (2 * wide + 3 + BLOCK) + (BLOCK * wide if wide != dim else 0))


_PLACES = 8 * 2 * 2 * BLOCK


@loop
def _layout(scratch: int, repeats: int, dim: int) -> Any:
    """W, and where in a thread's memory is what: behind the places of two blocks the scaled queries [R, W], what values
    add up to [R, W], the softmax's state [3, R], a block's scores [R, BLOCK] and, if W is not D, its rows [BLOCK, W].
    """
    wide = (dim + ROW - 1) // ROW * ROW
    q = scratch + _PLACES
    total = q + 4 * repeats * wide
    state = total + 4 * repeats * wide
    p = state + 4 * 3 * repeats
    return wide, q, total, state, p, p + 4 * repeats * BLOCK


@operation
def attend(row: int, item: int, scratch: int) -> None:
    """One part of one KV head: maximum of the scores, sum of their powers, values weighted with those."""
    op = longs(row, WIDTH)
    groups, repeats, dim, parts = op[A_GROUPS], op[A_REPEATS], op[A_DIM], op[A_PARTS]
    # Parts of one head are not neighbours among the items: threads then read different heads' pages.
    g, part = item % groups, item // groups
    wide, at_q, at_total, at_state, _, _ = _layout(scratch, repeats, dim)
    q, scaled = floats(op[A_Q], (groups, repeats, dim))[g], floats(at_q, (repeats, wide))
    total, state = floats(at_total, (repeats, wide)), floats(at_state, (3, repeats))
    scale = float32(real(op[A_SCALE]))
    for r in range(repeats):
        state[0, r], state[1, r] = float32(-math.inf), float32(0)
        for i in range(wide):
            total[r, i] = float32(0)
            scaled[r, i] = q[r, i] * scale if i < dim else float32(0)
    unit, kind, after = op[A_UNIT], op[A_KV_KIND], op[A_V_AFTER]
    units = op[A_SPAN] // unit
    whole = -(-op[A_COUNT] // units)
    begin, end, is_behind = part * units, min((part + 1) * units, op[A_COUNT]), part >= whole
    if is_behind:
        unit, kind, after = 1, op[A_TAIL_KIND], op[A_TAIL_V_AFTER]
        begin = (part - whole) * op[A_TAIL_SPAN]
        end = min(begin + op[A_TAIL_SPAN], op[A_TAIL_LEN])
    row_bytes = dim * (4 if kind == F32 else 2)
    places = longs(scratch, (2, 2, BLOCK))
    n, t, place, turn, ready = begin, 0, 0, 0, 0
    while True:
        held = 0
        while held < BLOCK and n < end:
            if t == 0:
                place = op[A_TAIL] + g * op[A_TAIL_PITCH] + n * row_bytes if is_behind else _place(op, g, n, row_bytes)
            places[turn, 0, held], places[turn, 1, held] = place + t * row_bytes, place + t * row_bytes + after
            if ready == 0:  # nothing is summed up meanwhile
                _fetch(places[turn], held, held + 1, row_bytes)
            held, t = held + 1, t + 1
            if t == unit:
                n, t = n + 1, 0
        if ready != 0:
            _block(kind, repeats, dim, scratch, 1 - turn, ready, held)
        if held == 0:
            break
        turn, ready = 1 - turn, held
    out = floats(op[A_OUT], (groups, parts, repeats, 2 + dim))[g, op[A_FIRST] + part]
    for r in range(repeats):
        out[r, 0], out[r, 1] = state[0, r], state[1, r]
        for i in range(dim):
            out[r, 2 + i] = total[r, i]


@loop
def _place(op: Any, g: int, n: int, row_bytes: int) -> int:
    """Where a head's keys of the n-th unit are."""
    if op[A_OWN] != 0:
        return longs(op[A_PLACES], (op[A_GROUPS], op[A_COUNT]))[g, n]
    first = n * op[A_UNIT]
    if op[A_IDS] != 0:
        first = int(wholes(op[A_IDS], (op[A_GROUPS], op[A_COUNT]))[g, n]) * op[A_UNIT]
    page = first // op[A_PAGE]
    return longs(op[A_PLACES], page + 1)[page] + g * op[A_PITCH] + first % op[A_PAGE] * row_bytes


@loop
def _fetch(places: Any, begin: int, end: int, row_bytes: int) -> None:
    """Fetch the keys and values of some tokens of a block."""
    for t in range(begin, end):
        for at in range(0, row_bytes, LINE):
            fetch(places[0, t] + at)
            fetch(places[1, t] + at)


@loop
def _block(kind: int, repeats: int, dim: int, scratch: int, turn: int, count: int, following: int) -> None:
    """Some tokens more in a running softmax, those of `turn`, while so many of the other block are fetched."""
    wide, at_q, at_total, at_state, at_p, at_rows = _layout(scratch, repeats, dim)
    places, ahead = longs(scratch, (2, 2, BLOCK))[turn], longs(scratch, (2, 2, BLOCK))[1 - turn]
    row_bytes = dim * (4 if kind == F32 else 2)
    if wide != dim:
        _widened(kind, places[0], dim, count, at_rows, wide)
    if kind == F32 or wide != dim:
        _scores_of_floats(places[0], count, at_q, repeats, wide, at_p, ahead, following, row_bytes)
    else:
        _scores_of_halves(places[0], count, at_q, repeats, wide, at_p, ahead, following, row_bytes)
    state, p = floats(at_state, (3, repeats)), floats(at_p, (repeats, BLOCK))
    for r in range(repeats):
        of_r = p[r]
        for t in range(count, BLOCK):
            of_r[t] = float32(-math.inf)
        top = max(state[0, r], highest(at_p + 4 * BLOCK * r))
        shrink = exp(state[0, r] - top) if state[0, r] > float32(-math.inf) else float32(0)
        mass = float32(0)
        for t in range(BLOCK):
            of_r[t] = exp(of_r[t] - top)
            mass += of_r[t]
        state[0, r], state[1, r], state[2, r] = top, state[1, r] * shrink + mass, shrink
    at_shrink = at_state + 4 * 2 * repeats
    if wide != dim:
        _widened(kind, places[1], dim, count, at_rows, wide)
    if kind == F32 or wide != dim:
        _values_of_floats(at_p, at_shrink, repeats, places[1].ctypes.data, count, wide, at_total)
    else:
        _values_of_halves(at_p, at_shrink, repeats, places[1].ctypes.data, count, wide, at_total)


def _scores_of(kind: int) -> Any:
    products = products_of(kind)

    @loop
    def scores(
        places: Any, count: int, q: int, repeats: int, wide: int, p: int, ahead: Any, following: int, row_bytes: int
    ) -> None:
        """The scores of a block's keys; those after the last are the last one's again."""
        last = count - 1
        for t in range(0, count, ROWS):
            _fetch(ahead, t, min(t + ROWS, following), row_bytes)
            a, b, c, d = places[t], places[min(t + 1, last)], places[min(t + 2, last)], places[min(t + 3, last)]
            products(q, wide, repeats, a, b, c, d, p + 4 * t, 4 * BLOCK)

    return scores


_scores_of_floats, _scores_of_halves = _scores_of(F32), _scores_of(BF16)
_values_of_floats, _values_of_halves = weighted_of(F32), weighted_of(BF16)


@loop
def _widened(kind: int, places: Any, dim: int, count: int, at: int, wide: int) -> None:
    """Rows of keys or values, as fp32, and zeros behind them; `places` are theirs from now on."""
    rows = floats(at, (count, wide))
    for t in range(count):
        row = rows[t]
        if kind == F32:
            whole = floats(places[t], dim)
            for i in range(dim):
                row[i] = whole[i]
        else:
            half = halves(places[t], dim)
            for i in range(dim):
                row[i] = widen(half[i])
        for i in range(dim, wide):
            row[i] = float32(0)
        places[t] = at + 4 * t * wide
