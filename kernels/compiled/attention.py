"""Attention of one token over chosen units of pages, read where they lie, and over the rows behind them.

The work is cut into parts of so many tokens, each with a softmax of its own; `products` puts them together. Cuts follow
from counts alone, so neither the number of threads nor the place of a page changes a bit.

Shapes  G KV heads, R query heads each, D head dim, L page size
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
    F32,
    WIDTH,
)  # fmt: skip

BLOCK = 32
"""Tokens whose keys, then whose values, are widened together."""


def attend_bytes(repeats: int, dim: int) -> int:
    """Bytes of its own that a thread needs."""
    return 4 * (BLOCK * dim + repeats * dim + repeats * BLOCK) + 8 * 2 * BLOCK


@operation
def attend(row: int, item: int, scratch: int) -> None:
    """One part of one KV head: maximum of the scores, sum of their powers, values weighted with those."""
    op = longs(row, WIDTH)
    groups, repeats, dim, parts = op[A_GROUPS], op[A_REPEATS], op[A_DIM], op[A_PARTS]
    # Parts of one head are not neighbours among the items: threads then read different heads' pages.
    g, part = item % groups, item // groups
    q = floats(op[A_Q], (groups, repeats, dim))[g]
    out = floats(op[A_OUT], (groups, parts, repeats, 2 + dim))[g, op[A_FIRST] + part]
    scaled = floats(scratch + 4 * BLOCK * dim, (repeats, dim))
    places = longs(scratch + 4 * (BLOCK * dim + repeats * dim + repeats * BLOCK), (2, BLOCK))
    scale = float32(real(op[A_SCALE]))
    for r in range(repeats):
        out[r, 0], out[r, 1] = float32(-math.inf), float32(0)
        for i in range(dim):
            out[r, 2 + i] = float32(0)
            scaled[r, i] = q[r, i] * scale
    unit = op[A_UNIT]
    units = op[A_SPAN] // unit
    whole = -(-op[A_COUNT] // units)
    if part >= whole:
        begin = (part - whole) * op[A_TAIL_SPAN]
        end = min(begin + op[A_TAIL_SPAN], op[A_TAIL_LEN])
        first, kind = op[A_TAIL] + g * op[A_TAIL_PITCH], op[A_TAIL_KIND]
        row = dim * (4 if kind == F32 else 2)
        for at in range(begin, end, BLOCK):
            count = min(BLOCK, end - at)
            for t in range(count):
                places[0, t] = first + (at + t) * row
                places[1, t] = places[0, t] + op[A_TAIL_V_AFTER]
            _block(kind, scaled, places, count, scratch, out)
        return
    begin, end, held, kind = part * units, min((part + 1) * units, op[A_COUNT]), 0, op[A_KV_KIND]
    row = dim * (4 if kind == F32 else 2)
    place = _place(op, g, begin, row)
    for n in range(begin, end):
        following = _place(op, g, min(n + 1, end - 1), row)
        if (
            unit == 1
        ):  # tokens lie anywhere; the rows of longer units follow each other, which processors see by themselves
            for at in range(following, following + row, LINE):
                fetch(at)
                fetch(at + op[A_V_AFTER])
        for t in range(unit):
            places[0, held], places[1, held] = place + t * row, place + t * row + op[A_V_AFTER]
            held += 1
            if held == BLOCK:
                _block(kind, scaled, places, held, scratch, out)
                held = 0
        place = following
    if held != 0:
        _block(kind, scaled, places, held, scratch, out)


@loop
def _place(op: Any, g: int, n: int, row: int) -> int:
    """Where a head's keys of the n-th unit are."""
    if op[A_OWN] != 0:
        return longs(op[A_PLACES], (op[A_GROUPS], op[A_COUNT]))[g, n]
    first = n * op[A_UNIT]
    if op[A_IDS] != 0:
        first = int(wholes(op[A_IDS], (op[A_GROUPS], op[A_COUNT]))[g, n]) * op[A_UNIT]
    page = first // op[A_PAGE]
    return longs(op[A_PLACES], page + 1)[page] + g * op[A_PITCH] + first % op[A_PAGE] * row


@loop
def _block(kind: int, q: Any, places: Any, count: int, scratch: int, out: Any) -> None:
    """Some tokens more in a running softmax."""
    repeats, dim = q.shape
    rows, p = floats(scratch, (BLOCK, dim)), floats(scratch + 4 * (BLOCK + repeats) * dim, (repeats, BLOCK))
    _widened(kind, places[0], count, rows)
    for r in range(repeats):
        x, of_r = q[r], p[r]
        for t in range(0, count, 4):
            a, b, c, d = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
            of_a, of_b, of_c, of_d = float32(0), float32(0), float32(0), float32(0)
            for i in range(dim):
                of_a += x[i] * a[i]
                of_b += x[i] * b[i]
                of_c += x[i] * c[i]
                of_d += x[i] * d[i]
            of_r[t], of_r[t + 1], of_r[t + 2], of_r[t + 3] = of_a, of_b, of_c, of_d
        top = out[r, 0]
        for t in range(count):
            top = max(top, of_r[t])
        shrink = exp(out[r, 0] - top) if out[r, 0] > float32(-math.inf) else float32(0)
        mass = out[r, 1] * shrink
        for t in range(count):
            p[r, t] = exp(p[r, t] - top)
            mass += p[r, t]
        out[r, 0], out[r, 1] = top, mass
        for i in range(dim):
            out[r, 2 + i] *= shrink
        for t in range(count, _fours(count)):
            p[r, t] = float32(0)
    _widened(kind, places[1], count, rows)
    for r in range(repeats):
        total = out[r, 2:]
        for t in range(0, count, 4):
            of_a, of_b, of_c, of_d = p[r, t], p[r, t + 1], p[r, t + 2], p[r, t + 3]
            a, b, c, d = rows[t], rows[t + 1], rows[t + 2], rows[t + 3]
            for i in range(dim):
                total[i] += (of_a * a[i] + of_b * b[i]) + (of_c * c[i] + of_d * d[i])


@loop
def _fours(count: int) -> Any:
    """The next multiple of four: tokens are read four at a time, so that what is summed stays in registers."""
    return (count + 3) // 4 * 4


@loop
def _widened(kind: int, places: Any, count: int, rows: Any) -> None:
    """Rows of keys or values, as fp32, and zeros up to the next multiple of four."""
    dim = rows.shape[1]
    for t in range(count, _fours(count)):
        for i in range(dim):
            rows[t, i] = float32(0)
    for t in range(count):
        if kind == F32:
            wide = floats(places[t], dim)
            for i in range(dim):
                rows[t, i] = wide[i]
        else:
            half = halves(places[t], dim)
            for i in range(dim):
                rows[t, i] = widen(half[i])
