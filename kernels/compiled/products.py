"""Products of a few vectors with a weight: y[b, r] = W[r] . x[b] + bias[r].

Every thread makes x for itself, from what earlier operations left (`prepare`); an item is some rows of W (`product`).
Making x is thousands of operations, W is millions of them, and nobody waits for anybody in between.

Shapes  B sequences, C columns, N rows, G KV heads, R query heads each, D head dim
"""

from __future__ import annotations

import math
from typing import Any

from numba import float32

from .dots import dot_of, four_dots_of
from .native import exp, floats, longs, loop, real
from .operation import operation, preparation
from .record import (
    BF16,
    CLAMPED,
    F32,
    GATED,
    MERGED,
    P_A,
    P_ACT,
    P_BATCH,
    P_BIAS,
    P_CENTRED,
    P_CHUNK,
    P_COLUMNS,
    P_D,
    P_DIM,
    P_EPS,
    P_FACTOR,
    P_GATE_DIM,
    P_GATE_STRIDE,
    P_GATES,
    P_GROUPS,
    P_INPUT,
    P_KIND,
    P_LIMIT,
    P_NORM,
    P_NORM_D,
    P_PARALLEL,
    P_PARTS,
    P_ROOM,
    P_ROWS,
    P_SAME,
    P_SLOPE,
    P_STRIDE,
    P_SUM,
    P_TOTAL,
    P_WEIGHT,
    P_Y,
    SILU,
    SUM,
    WIDTH,
)  # fmt: skip


def product_bytes(batch: int, columns: int) -> int:
    """Bytes of its own that a thread needs for products of `batch` vectors."""
    return 4 * batch * columns


@preparation
def prepare(row: int, scratch: int) -> None:
    """Make x, fp32 `[B, C]`, in this thread's memory."""
    make(longs(row, WIDTH), scratch)


@loop
def make(op: Any, scratch: int) -> None:
    """Make x at an address, unless it is there."""
    if op[P_SAME] != 0:
        return
    batch, columns = op[P_BATCH], op[P_COLUMNS]
    x = floats(scratch, (batch, columns))
    if op[P_INPUT] == GATED:
        _gate(op, floats(op[P_A], (batch, 2 * columns)), x)
    elif op[P_INPUT] == MERGED:
        _merge(op, x)
    else:
        given = floats(op[P_A], (batch, columns))
        for b in range(batch):
            for i in range(columns):
                x[b, i] = given[b, i]
        if op[P_INPUT] == SUM:
            _sum(op, x)
    if op[P_GATES] != 0:
        _let_through(op, x)


@loop
def _sum(op: Any, x: Any) -> None:
    """x = norm(x + norm(D)), and what is between the norms to P_SUM: all threads write the same there."""
    batch, columns, eps = op[P_BATCH], op[P_COLUMNS], float32(real(op[P_EPS]))
    if op[P_D] != 0:
        more, total = floats(op[P_D], (batch, columns)), floats(op[P_SUM], (batch, columns))
        factor, whole = float32(real(op[P_FACTOR])), float32(real(op[P_TOTAL]))
        for b in range(batch):
            if op[P_NORM_D] != 0:
                weight, scale = floats(op[P_NORM_D], columns), root(more[b], eps)
                for i in range(columns):
                    x[b, i] += more[b, i] * scale * weight[i]
            elif op[P_PARALLEL] != 0:
                for i in range(columns):
                    total[b, i] = x[b, i] + more[b, i] * factor
                continue
            else:
                for i in range(columns):
                    x[b, i] += more[b, i] * factor
            for i in range(columns):
                x[b, i] *= whole
                total[b, i] = x[b, i]
    if op[P_NORM] != 0:
        weight = floats(op[P_NORM], columns)
        for b in range(batch):
            if op[P_CENTRED] != 0:
                centre(x[b])
            scale = root(x[b], eps)
            for i in range(columns):
                x[b, i] = x[b, i] * scale * weight[i]


@loop
def _let_through(op: Any, x: Any) -> None:
    """Multiply x by the sigmoid of gates, which stand behind as many other numbers."""
    dim = op[P_GATE_DIM]
    for b in range(op[P_BATCH]):
        gates = floats(op[P_GATES] + 4 * b * op[P_GATE_STRIDE], 2 * op[P_COLUMNS])
        for head in range(op[P_COLUMNS] // dim):
            for i in range(dim):
                x[b, head * dim + i] /= float32(1) + exp(-gates[2 * head * dim + i])


@loop
def root(x: Any, eps: Any) -> Any:
    """One over the root of the mean square."""
    total = float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return float32(1) / float32(math.sqrt(total / float32(x.shape[0]) + eps))


@loop
def centre(x: Any) -> None:
    """Take the mean away."""
    total = float32(0)
    for i in range(x.shape[0]):
        total += x[i]
    mean = total / float32(x.shape[0])
    for i in range(x.shape[0]):
        x[i] -= mean


@loop
def _gate(op: Any, given: Any, x: Any) -> None:
    (batch, columns), act = x.shape, op[P_ACT]
    limit, slope = float32(real(op[P_LIMIT])), float32(real(op[P_SLOPE]))
    for b in range(batch):
        if act == SILU:
            for i in range(columns):
                gate = given[b, i]
                x[b, i] = gate / (float32(1) + exp(-gate)) * given[b, columns + i]
        elif act == CLAMPED:
            for i in range(columns):
                gate, up = min(given[b, i], limit), min(max(given[b, columns + i], -limit), limit)
                x[b, i] = gate / (float32(1) + exp(-slope * gate)) * (up + float32(1))
        else:  # 1 + tanh(z) = 2 / (1 + exp(-2 z))
            for i in range(columns):
                gate = given[b, i]
                z = float32(1.5957691216057308) * (gate + float32(0.044715) * gate * gate * gate)
                x[b, i] = gate / (float32(1) + exp(-z)) * given[b, columns + i]


@loop
def _merge(op: Any, x: Any) -> None:
    """The parts of an attention, each with a maximum and a sum of its own, put together."""
    batch, groups, dim = op[P_BATCH], op[P_GROUPS], op[P_DIM]
    repeats = op[P_COLUMNS] // (groups * dim)
    for b in range(batch):
        parts = longs(op[P_PARTS], batch)[b]
        given = floats(op[P_A] + 4 * b * op[P_ROOM], (groups, parts, repeats, 2 + dim))
        for g in range(groups):
            for r in range(repeats):
                out = x[b, (g * repeats + r) * dim : (g * repeats + r + 1) * dim]
                top, mass = float32(-math.inf), float32(0)
                if op[P_D] != 0:
                    top = floats(op[P_D], groups * repeats)[g * repeats + r]
                for p in range(parts):
                    top = max(top, given[g, p, r, 0])
                if op[P_D] != 0:
                    mass = exp(floats(op[P_D], groups * repeats)[g * repeats + r] - top)
                for i in range(dim):
                    out[i] = float32(0)
                for p in range(parts):
                    share = exp(given[g, p, r, 0] - top)
                    mass += share * given[g, p, r, 1]
                    for i in range(dim):
                        out[i] += share * given[g, p, r, 2 + i]
                for i in range(dim):
                    out[i] /= mass


def _rows_of(kind: int) -> Any:
    dot, four_dots = dot_of(kind), four_dots_of(kind)
    size = 4 if kind == F32 else 2

    @loop
    def rows(op: Any, x: int, begin: int, end: int) -> None:
        """Rows of y. Each row of W is read once for all vectors, four of them at a time; where fewer are left, the last
        stands for those that are missing."""
        batch, columns = op[P_BATCH], op[P_COLUMNS]
        y, pitch, last = floats(op[P_Y], (batch, op[P_STRIDE])), 4 * columns, batch - 1
        for r in range(begin, end):
            row = op[P_WEIGHT] + size * r * columns
            if batch == 1:
                y[0, r] = dot(row, columns, x)[0]
            else:
                for a in range(0, batch, 4):
                    b, c, d = min(a + 1, last), min(a + 2, last), min(a + 3, last)
                    found = four_dots(row, columns, x + a * pitch, x + b * pitch, x + c * pitch, x + d * pitch)
                    y[a, r], y[b, r], y[c, r], y[d, r] = found

    return rows


_rows_of_floats, _rows_of_halves = _rows_of(F32), _rows_of(BF16)


@operation
def product(row: int, item: int, scratch: int) -> None:
    """The rows of one item."""
    op = longs(row, WIDTH)
    begin = item * op[P_CHUNK]
    end = min(begin + op[P_CHUNK], op[P_ROWS])
    if op[P_KIND] == F32:
        _rows_of_floats(op, scratch, begin, end)
    elif op[P_KIND] == BF16:
        _rows_of_halves(op, scratch, begin, end)
    if op[P_BIAS] != 0:
        add_bias(op, begin, end, floats(op[P_Y], (op[P_BATCH], op[P_STRIDE])))


@loop
def add_bias(op: Any, begin: int, end: int, y: Any) -> None:
    """Add the bias to some rows of y `[B, N]`."""
    bias = floats(op[P_BIAS], end)
    for r in range(begin, end):
        for b in range(op[P_BATCH]):
            y[b, r] += bias[r]
