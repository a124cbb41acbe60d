"""The best units of a KV head, exactly: the k largest of positive numbers are those at least as large as the k-th,
and the k-th is found bit by bit.

A pass over all units that only counts is fast, a pass that does something for each is not. So the numbers are folded
eight to one, to the largest of each eight: at least k units reach the k-th largest of those, and few more do. Among
these few the rest takes place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int32, types
from numba.extending import intrinsic

from .native import floats, longs, loop, wholes
from .operation import operation
from .record import (
    C_COUNT,
    C_IDS,
    C_LOCAL,
    C_REPEATS,
    C_ROOM,
    C_SCORES,
    C_SINK,
    C_SPAN,
    C_TOPS,
    C_UNITS,
    WIDTH,
)
from .scores import power

_FOLDED = 8
_LANES = 32
"""Units that are compared by one mask."""
_LIFT = float32(2.0**100)
"""All group scores are multiplied with this: softmax's smallest values then do not vanish."""

_I32, _WORD, _MANY = ir.IntType(32), ir.IntType(64), ir.VectorType(ir.IntType(32), _LANES)


def choice_bytes(units: int, parts: int) -> int:
    """Bytes that `choose` needs of a thread's own memory."""
    return 4 * (3 * (units + _LANES) + units // _FOLDED + 1 + parts)


@intrinsic
def _reaching(context: Any, address: Any, least: Any) -> Any:
    """A bit for each of the 32 int32 at an address: is it at least `least`?"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = builder.load(builder.inttoptr(args[0], _MANY.as_pointer()), align=4)
        one = builder.insert_element(ir.Constant(_MANY, ir.Undefined), args[1], ir.Constant(_I32, 0))
        all_alike = builder.shuffle_vector(one, one, ir.Constant(_MANY, [0] * _LANES))
        bits = builder.bitcast(builder.icmp_signed(">=", numbers, all_alike), ir.IntType(_LANES))
        return builder.zext(bits, _WORD)

    return types.int64(types.int64, types.int32), emit


@intrinsic
def _lowest_bit(context: Any, bits: Any) -> Any:
    """The place of the lowest bit that is set; 64 if none is."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), emit


@loop
def _count(numbers: Any, least: Any) -> Any:
    """How many of int32 numbers are at least `least`."""
    total = int32(0)
    for n in range(numbers.shape[0]):
        total = int32(total + int32(numbers[n] >= least))
    return total


@loop
def _reached_by(numbers: Any, wanted: int) -> Any:
    """The largest number, int32, that at least `wanted` of them reach, or a smaller one that exactly as many do. None
    is negative."""
    least = int32(0)
    for bit in range(30, -1, -1):
        higher = int32(least | (1 << bit))
        total = _count(numbers, higher)
        if total >= wanted:
            least = higher
        if total == wanted:
            break
    return least


@loop
def _group_scores(op: Any, g: int, at_factors: int, to: int) -> None:
    """The sum, over query heads, of their softmax over all units, times a constant."""
    repeats, units, span = op[C_REPEATS], op[C_UNITS], op[C_SPAN]
    parts = (units + span - 1) // span
    factors, group = floats(at_factors, (parts,)), floats(to, (units,))
    for r in range(repeats):
        tops = floats(op[C_TOPS] + 8 * (g * repeats + r) * parts, (parts, 2))
        powers = floats(op[C_SCORES] + 4 * (g * repeats + r) * op[C_ROOM], (units,))
        top, mass = float32(-np.inf), float32(0)
        for p in range(parts):
            top = max(top, tops[p, 0])
        for p in range(parts):
            factors[p] = power(tops[p, 0] - top)
            mass += factors[p] * tops[p, 1]
        for p in range(parts):
            factor, first, end = factors[p] * (_LIFT / mass), p * span, min(units, p * span + span)
            row, total = powers[first:end], group[first:end]
            if r == 0:
                for n in range(row.shape[0]):
                    total[n] = row[n] * factor
            else:
                for n in range(row.shape[0]):
                    total[n] += row[n] * factor


@loop
def _fold(numbers: Any, folded: Any) -> None:
    """The largest of every eight, which stand far apart: neighbours are often large together."""
    stride = folded.shape[0]
    for n in range(stride):
        folded[n] = numbers[n]
    for begin in range(stride, numbers.shape[0], stride):
        further = numbers[begin : begin + stride]
        for n in range(further.shape[0]):
            folded[n] = max(folded[n], further[n])


@loop
def _candidates(numbers: int, count: int, least: Any, places: Any, values: Any) -> int:
    """Of `count` int32 at an address, those that reach `least`: where they are, and themselves. Returns how many they
    are. `places` has room for two more than all.

    Most masks have two bits at most, and which have none is not to be foreseen: two are always written.
    """
    found, row = 0, wholes(numbers, (count,))
    for n in range(0, count, _LANES):
        bits: Any = _reaching(numbers + 4 * n, least)
        if count - n < _LANES:
            bits &= (1 << (count - n)) - 1
        for _ in range(2):
            places[found] = n + _lowest_bit(bits)
            found += int(bits != 0)
            bits &= bits - 1
        while bits:
            places[found] = n + _lowest_bit(bits)
            found += 1
            bits &= bits - 1
    for n in range(found):
        values[n] = row[places[n]]
    return found


@operation
def choose(row: int, item: int, scratch: int) -> None:
    """The first and the last units and, between them, those with the highest mean softmax over the query heads; of
    equal ones the first. `C_COUNT` ids, or all units if there are no more."""
    op = longs(row, WIDTH)
    units = op[C_UNITS]
    wanted = min(op[C_COUNT], units)
    sink = min(op[C_SINK], wanted)
    local = min(op[C_LOCAL], wanted - sink)
    free, middle = wanted - sink - local, units - sink - local
    ids = wholes(op[C_IDS] + 4 * item * op[C_COUNT], (wanted,))
    for n in range(wanted):
        ids[n] = n if n < sink + free else units - wanted + n
    if free == 0 or free == middle:
        return
    folds = (middle + _FOLDED - 1) // _FOLDED
    places = wholes(scratch + 4 * (units + _LANES), (middle + 2,))
    values = wholes(scratch + 8 * (units + _LANES), (middle,))
    folded = wholes(scratch + 12 * (units + _LANES), (folds,))
    _group_scores(op, item, scratch + 12 * (units + _LANES) + 4 * folds, scratch)
    at_middle, least = scratch + 4 * sink, int32(0)
    if free <= folds:
        _fold(wholes(at_middle, (middle,)), folded)
        least = _reached_by(folded, free)
    found = _candidates(at_middle, middle, least, places, values)
    values = values[:found]
    least = _reached_by(values, free)
    equal = free - _count(values, int32(least + 1))
    chosen = 0  # those that are taken move to the front, without a branch that nobody foresees
    for n in range(found):
        is_one_of_equal = (values[n] == least) & (equal > 0)
        places[chosen] = places[n]
        chosen += int((values[n] > least) | is_one_of_equal)
        equal -= int(is_one_of_equal)
    for n in range(free):
        ids[sink + n] = sink + places[n]
