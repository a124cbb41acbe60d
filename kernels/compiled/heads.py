"""Norms and rotation of a new token's heads; its k and v go where they belong.

Shapes  B sequences, H query heads, G KV heads, D head dim
"""

from __future__ import annotations

from typing import Any

from numba import float32

from .native import floats, halves, longs, loop, narrow, real
from .operation import operation
from .products import root
from .record import (
    F32,
    H_BATCH,
    H_COS,
    H_DIM,
    H_EPS,
    H_FACTORS,
    H_GATED,
    H_GROUPS,
    H_HEADS,
    H_KEYS_ARE_VALUES,
    H_NORM,
    H_NORMS_VALUES,
    H_PAIRS,
    H_PLACES,
    H_Q,
    H_QKV,
    H_ROTARY,
    H_SIN,
    H_WIDE,
    WIDTH,
)  # fmt: skip


def heads_bytes(dim: int) -> int:
    """Bytes of its own that a thread needs."""
    return 8 * dim


@operation
def heads(row: int, item: int, scratch: int) -> None:
    """One head of q, k or v of one sequence."""
    op = longs(row, WIDTH)
    queries, groups, dim = op[H_HEADS], op[H_GROUPS], op[H_DIM]
    each = queries + 2 * groups
    b, head = item // each, item % each
    given, there = head, each
    if op[H_KEYS_ARE_VALUES] != 0:
        there = queries + groups
        if head >= there:
            given = head - groups
    elif op[H_GATED] != 0:
        there = each + queries
        given = 2 * head if head < queries else head + queries
    qkv = floats(op[H_QKV], (op[H_BATCH], there, dim))
    x, turned = floats(scratch, dim), floats(scratch + 4 * dim, dim)
    for i in range(dim):
        x[i] = qkv[b, given, i]
    if head < queries + groups:
        _norm(op, qkv[b], head, x)
        half = op[H_PAIRS] // 2
        for i in range(half):
            turned[i], turned[half + i] = x[2 * i], x[2 * i + 1]
        for i in range(2 * half):
            x[i] = turned[i]
        if op[H_ROTARY] != 0:
            _turn(op, b, x, turned)
    elif op[H_NORMS_VALUES] != 0:
        scale = root(x, float32(real(op[H_EPS])))
        for i in range(dim):
            x[i] *= scale
    if head < queries:
        if op[H_FACTORS] != 0:
            factor = floats(op[H_FACTORS], op[H_BATCH])[b]
            for i in range(dim):
                x[i] *= factor
        q = floats(op[H_Q], (op[H_BATCH], queries, dim))
        for i in range(dim):
            q[b, head, i] = x[i]
        return
    places = longs(op[H_PLACES], (op[H_BATCH], 4))
    place = places[b, 0]
    if head < queries + groups:
        place += (head - queries) * places[b, 1]
    else:
        place += (head - queries - groups) * places[b, 1] + places[b, 2]
    if places[b, 3] == F32:
        wide = floats(place, dim)
        for i in range(dim):
            wide[i] = x[i]
    else:
        half = halves(place, dim)
        for i in range(dim):
            half[i] = narrow(x[i])


@loop
def _norm(op: Any, qkv: Any, head: int, x: Any) -> None:
    """The norm of a head, or of all heads together of which this is one."""
    if op[H_NORM] == 0:
        return
    queries, groups, dim = op[H_HEADS], op[H_GROUPS], op[H_DIM]
    weight = floats(op[H_NORM], (queries + groups, dim))[head]
    scale = float32(0)
    if op[H_WIDE] != 0:
        flat = qkv.reshape(-1)
        some = flat[: queries * dim] if head < queries else flat[queries * dim : (queries + groups) * dim]
        scale = root(some, float32(real(op[H_EPS])))
    else:
        scale = root(x, float32(real(op[H_EPS])))
    for i in range(dim):
        x[i] = x[i] * scale * weight[i]


@loop
def _turn(op: Any, b: int, x: Any, turned: Any) -> None:
    """Rotate the first H_ROTARY numbers; the cosine is for the others, too, where tables scale."""
    dim, width = op[H_DIM], op[H_ROTARY]
    cos, sin = floats(op[H_COS], (op[H_BATCH], dim))[b], floats(op[H_SIN], (op[H_BATCH], width))[b]
    half = width // 2
    for i in range(dim):
        turned[i] = x[i] * cos[i]
    for i in range(half):
        turned[i] += x[half + i] * sin[i]
        turned[half + i] += x[i] * sin[half + i]
    for i in range(dim):
        x[i] = turned[i]
