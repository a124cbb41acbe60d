"""What a new token does to the state of a recurrent layer, and what it reads there.

    delta      a gated delta rule (`kernels.delta_rule`) behind a short convolution, and the norm behind it
    convolve   a short convolution, gated before and behind

A state is read at one address and written at another: it is never changed (`runtime.layers.recurrent`).

Shapes  B sequences, N value heads, K taps of each channel
"""

from __future__ import annotations

import math
from typing import Any

from numba import float32

from .native import exp, floats, longs, loop, real
from .operation import operation
from .products import root
from .record import (
    D_BATCH,
    D_CHANNELS,
    D_EPS,
    D_HEADS,
    D_IN,
    D_KEY,
    D_NORM,
    D_OUT,
    D_PLACES,
    D_RATES,
    D_SCALE,
    D_STATES,
    D_STEPS,
    D_STRIDE,
    D_TAPS,
    D_VALUE,
    D_WEIGHTS,
    K_BATCH,
    K_BIAS,
    K_CHANNELS,
    K_CHUNK,
    K_IN,
    K_OUT,
    K_STATES,
    K_TAPS,
    K_WEIGHTS,
    WIDTH,
)  # fmt: skip

_LENGTH_EPS = float32(1e-6)


def delta_bytes(key: int, value: int) -> int:
    """Bytes of its own that a thread needs."""
    return 4 * (2 * key + 3 * value)


@operation
def delta(row: int, item: int, scratch: int) -> None:
    """One value head of one sequence. A key head's columns are written by the first that it serves."""
    op = longs(row, WIDTH)
    count, key, value = op[D_HEADS], op[D_KEY], op[D_VALUE]
    b, head = item // count, item % count
    place = longs(op[D_PLACES], (count, 10))[head]
    given = floats(op[D_IN] + 4 * b * op[D_STRIDE], op[D_STRIDE])
    states = longs(op[D_STATES], (op[D_BATCH], 4))
    q, k, v = floats(scratch, key), floats(scratch + 4 * key, key), floats(scratch + 8 * key, value)
    by_key, by_query = floats(scratch + 8 * key + 4 * value, value), floats(scratch + 8 * (key + value), value)
    _convolved(op, given[place[0] :], place[6], states[b], q, place[9] != 0)
    _convolved(op, given[place[1] :], place[7], states[b], k, place[9] != 0)
    _convolved(op, given[place[2] :], place[8], states[b], v, True)
    _of_length_one(q, float32(real(op[D_SCALE])))
    _of_length_one(k, float32(1))
    size = 4 * head * key * value
    before, behind = floats(states[b, 2] + size, (key, value)), floats(states[b, 3] + size, (key, value))
    for i in range(value):
        by_key[i] = by_query[i] = float32(0)
    product = float32(0)
    for j in range(key):
        of_key, of_query = k[j], q[j]
        product += of_key * of_query
        for i in range(value):
            by_key[i] += before[j, i] * of_key
            by_query[i] += before[j, i] * of_query
    wait = given[place[5]] + floats(op[D_STEPS], count)[head]
    wait = wait if wait > float32(20) else float32(math.log1p(exp(wait)))
    fade = exp(floats(op[D_RATES], count)[head] * wait)
    beta = float32(1) / (float32(1) + exp(-given[place[4]]))
    for i in range(value):
        v[i] = beta * (v[i] - fade * by_key[i])
        by_query[i] = fade * by_query[i] + product * v[i]
    for j in range(key):
        of_key = k[j]
        for i in range(value):
            behind[j, i] = fade * before[j, i] + of_key * v[i]
    out, weight = floats(op[D_OUT], (op[D_BATCH], count, value))[b, head], floats(op[D_NORM], value)
    scale = root(by_query, float32(real(op[D_EPS])))
    for i in range(value):
        gate = given[place[3] + i]
        out[i] = by_query[i] * scale * weight[i] * (gate / (float32(1) + exp(-gate)))


@loop
def _convolved(op: Any, given: Any, first: int, states: Any, out: Any, is_kept: bool) -> None:
    """Channels from `first` on, convolved, through silu; `is_kept`: their columns go on."""
    channels, taps = op[D_CHANNELS], op[D_TAPS]
    weights = floats(op[D_WEIGHTS], (channels, taps))
    before, behind = floats(states[0], (taps - 1, channels)), floats(states[1], (taps - 1, channels))
    for i in range(out.shape[0]):
        total = given[i] * weights[first + i, taps - 1]
        for t in range(taps - 1):
            total += before[t, first + i] * weights[first + i, t]
        out[i] = total / (float32(1) + exp(-total))
    if is_kept:
        for t in range(taps - 2):
            for i in range(out.shape[0]):
                behind[t, first + i] = before[t + 1, first + i]
        if taps > 1:
            for i in range(out.shape[0]):
                behind[taps - 2, first + i] = given[i]


@loop
def _of_length_one(x: Any, scale: Any) -> None:
    total = float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    scale *= float32(1) / float32(math.sqrt(total + _LENGTH_EPS))
    for i in range(x.shape[0]):
        x[i] *= scale


@operation
def convolve(row: int, item: int, scratch: int) -> None:
    """Some channels of one sequence."""
    op = longs(row, WIDTH)
    batch, channels, taps = op[K_BATCH], op[K_CHANNELS], op[K_TAPS]
    each = -(-channels // op[K_CHUNK])
    b, begin = item // each, item % each * op[K_CHUNK]
    end = min(begin + op[K_CHUNK], channels)
    given, out = floats(op[K_IN], (batch, 3, channels))[b], floats(op[K_OUT], (batch, channels))[b]
    states, weights = longs(op[K_STATES], (batch, 2))[b], floats(op[K_WEIGHTS], (channels, taps))
    before, behind = floats(states[0], (taps - 1, channels)), floats(states[1], (taps - 1, channels))
    for i in range(begin, end):
        new = given[0, i] * given[2, i]
        total = new * weights[i, taps - 1]
        for t in range(taps - 1):
            total += before[t, i] * weights[i, t]
        for t in range(taps - 2):
            behind[t, i] = before[t + 1, i]
        if taps > 1:
            behind[taps - 2, i] = new
        if op[K_BIAS] != 0:
            total += floats(op[K_BIAS], channels)[i]
        out[i] = given[1, i] * total
