"""A mixture of experts in a step: each sequence has K of E weights, and shares of what comes of them.

    route      which experts, and their shares, from the router's logits
    each       y[b, k] = W[expert k of b] x[b]
    together   y[b] = the sum over k of share[b, k] * W[expert k of b] x[b, k], and what a shared expert has left
    both       y[b] = norm(x[b]) + norm(d[b]), where a dense MLP stands beside them

x is made as for products (`products.make`), and weights are rows of numbers or of blocks as there, so an expert's
result has the bits that it would have alone. Experts may have biases, which are added to W x.

Shapes  B sequences, C columns, N rows, E experts, K of them for each sequence
"""

from __future__ import annotations

from typing import Any

from numba import float32

from .block_products import arranged, product_bytes
from .blocks import call_rows, vector_bytes
from .dots import dot_of
from .native import exp, floats, longs, loop, real
from .operation import operation
from .products import root
from .record import (
    BF16,
    F32,
    P_A,
    P_BATCH,
    P_BIAS,
    P_CHOSEN,
    P_CHUNK,
    P_CODE,
    P_COLUMNS,
    P_D,
    P_EPS,
    P_IDS,
    P_KIND,
    P_NORM,
    P_NORM_D,
    P_ROOM,
    P_ROUNDED,
    P_ROWS,
    P_SHARES,
    P_STRIDE,
    P_WEIGHT,
    P_Y,
    R_CHOSEN,
    R_EXPERTS,
    R_FACTORS,
    R_IDS,
    R_LOGITS,
    R_RENORMALISES,
    R_SHARES,
    WIDTH,
)  # fmt: skip

_LEAST = float32(-3.4e38)
_dot_floats, _dot_halves = dot_of(F32), dot_of(BF16)


def vectors_bytes(vectors: int, columns: int) -> int:
    """Bytes of its own that a thread needs for x, whatever the kind of weight; `together` needs room behind them."""
    return product_bytes(vectors, columns)


@operation
def route(row: int, item: int, scratch: int) -> None:
    """The experts of one sequence, the best first; of equal ones the first. NaN is never chosen before a number."""
    op = longs(row, WIDTH)
    count, chosen = op[R_EXPERTS], op[R_CHOSEN]
    logits = floats(op[R_LOGITS] + 4 * item * count, count)
    ids, shares = longs(op[R_IDS] + 8 * item * chosen, chosen), floats(op[R_SHARES] + 4 * item * chosen, chosen)
    for k in range(chosen):
        best, most = -1, _LEAST
        for e in range(count):
            is_taken = False
            for before in range(k):
                is_taken = is_taken or ids[before] == e
            if not is_taken and (best < 0 or logits[e] > most):
                best, most = e, logits[e] if logits[e] == logits[e] else _LEAST
        ids[k] = best
    top, mass = logits[ids[0]], float32(0)
    for k in range(chosen):
        shares[k] = exp(logits[ids[k]] - top)
        mass += shares[k]
    if op[R_RENORMALISES] == 0:
        mass = float32(0)
        for e in range(count):
            mass += exp(logits[e] - top)
    for k in range(chosen):
        shares[k] /= mass
    if op[R_FACTORS] != 0:
        factors = floats(op[R_FACTORS], count)
        for k in range(chosen):
            shares[k] *= factors[ids[k]]


@loop
def _rows(op: Any, expert: int, scratch: int, number: int, begin: int, end: int, y: int) -> None:
    """Some rows of an expert's weight with x number `number`, to fp32 at y, which is where row 0 would be."""
    _multiplied(op, longs(op[P_WEIGHT], expert + 1)[expert], scratch, number, begin, end, y)
    if op[P_BIAS] != 0:
        bias, out = floats(longs(op[P_BIAS], expert + 1)[expert], end), floats(y, end)
        for r in range(begin, end):
            out[r] += bias[r]


@loop
def _multiplied(op: Any, weight: int, scratch: int, number: int, begin: int, end: int, y: int) -> None:
    columns = op[P_COLUMNS]
    if op[P_CODE] != 0:
        x = arranged(scratch, op[P_BATCH], columns)
        x += number * vector_bytes(columns, op[P_ROUNDED])
        call_rows(op[P_CODE], weight, columns, x, 1, begin, end, y, 0)
        return
    x, out = scratch + 4 * number * columns, floats(y, end)
    for r in range(begin, end):
        if op[P_KIND] == F32:
            out[r] = _dot_floats(weight + 4 * r * columns, columns, x)[0]
        else:
            out[r] = _dot_halves(weight + 2 * r * columns, columns, x)[0]


@operation
def each(row: int, item: int, scratch: int) -> None:
    """Some rows of one expert of one sequence."""
    op = longs(row, WIDTH)
    chunks = (op[P_ROWS] + op[P_CHUNK] - 1) // op[P_CHUNK]
    pair, begin = item // chunks, item % chunks * op[P_CHUNK]
    end = min(begin + op[P_CHUNK], op[P_ROWS])
    expert = longs(op[P_IDS], pair + 1)[pair]
    _rows(op, expert, scratch, pair // op[P_CHOSEN], begin, end, op[P_Y] + 4 * pair * op[P_STRIDE])


@operation
def together(row: int, item: int, scratch: int) -> None:
    """Some rows of all experts of all sequences. P_BATCH is B * K."""
    op = longs(row, WIDTH)
    begin = item * op[P_CHUNK]
    end, pairs, chosen = min(begin + op[P_CHUNK], op[P_ROWS]), op[P_BATCH], op[P_CHOSEN]
    room = scratch + op[P_ROOM]
    ids, shares, some = longs(op[P_IDS], pairs), floats(op[P_SHARES], pairs), floats(room, end - begin)
    y = floats(op[P_Y], (pairs // chosen, op[P_STRIDE]))
    for pair in range(pairs):
        _rows(op, ids[pair], scratch, pair, begin, end, room - 4 * begin)
        share, out = shares[pair], y[pair // chosen, begin:end]
        if pair % chosen == 0 and op[P_D] != 0:
            b = pair // chosen
            own = float32(1) / (float32(1) + exp(-floats(op[P_NORM_D], b + 1)[b]))
            shared = floats(op[P_D], (b + 1, op[P_ROWS]))[b, begin:end]
            for r in range(end - begin):
                out[r] = own * shared[r] + share * some[r]
        elif pair % chosen == 0:
            for r in range(end - begin):
                out[r] = share * some[r]
        else:
            for r in range(end - begin):
                out[r] += share * some[r]


@operation
def both(row: int, item: int, scratch: int) -> None:
    """Two vectors of one sequence, each normed, added."""
    op = longs(row, WIDTH)
    columns, eps, there = op[P_COLUMNS], float32(real(op[P_EPS])), 4 * item * op[P_COLUMNS]
    x, d, y = floats(op[P_A] + there, columns), floats(op[P_D] + there, columns), floats(op[P_Y] + there, columns)
    of_x, of_d = floats(op[P_NORM], columns), floats(op[P_NORM_D], columns)
    scale_x, scale_d = root(x, eps), root(d, eps)
    for i in range(columns):
        y[i] = x[i] * scale_x * of_x[i] + d[i] * scale_d * of_d[i]
