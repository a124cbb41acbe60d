"""The tokens that a query's hash collisions sample, in as many tables as a budget has room for.

Shapes  G KV heads, R query heads each, L tables, n tokens
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .hash_tables import NEVER, Array, HashTables

LEAST_DEPTH = 4
"""The fewest bits that must agree. A bucket of a sixteenth of all tokens says little about an angle."""


class Collisions(NamedTuple):
    """The tokens that each query head sampled. A token is in head (g, r)'s sample if and only if `second[g, r] <=
    tables[g]`."""

    depth: Array
    """int64 `[G]`: number of bits that had to agree."""
    tables: Array
    """int64 `[G]`: number of tables, from the first, that were asked."""
    second: Array
    """int16 `[G, R, n]`: number of tables, from the first, until the token collides twice."""
    soonest: Array
    """int16 `[G, n]`: the least of `second` over the query heads."""


def collision_sample(tables: HashTables, wanted: Array, begin: int, end: int, room: int) -> Collisions:
    """Sample the tokens `begin .. end`, at most `room` of them per KV head: the union over its query heads.

    The deepest buckets whose sample in all tables reaches `room` are used, then as many tables as fit: the sample
    is never cut, so that every token is in it with the probability that depth and tables imply. Where no depth from
    `LEAST_DEPTH` on reaches `room`, the sample is smaller.

    Args:
        wanted: codes of the queries, int16 `[G, R, L]`.
    """
    groups, repeats, num_tables = wanted.shape
    second = np.full((groups, repeats, end), NEVER, dtype=np.int16)
    soonest = np.full((groups, end), NEVER, dtype=np.int16)
    depth = np.full(groups, LEAST_DEPTH, dtype=np.int64)
    taken = np.zeros(groups, dtype=np.int64)
    open_heads = np.arange(groups)
    for bits in range(tables.bits, LEAST_DEPTH - 1, -1):
        last = bits == LEAST_DEPTH
        likely = last | (tables.most_colliding(open_heads, wanted[open_heads], bits) >= room)
        heads = open_heads[likely]
        if not len(heads):
            continue
        hits = tables.second_hits(heads, wanted[heads], bits)[..., :end]
        hits[..., :begin] = NEVER
        least = hits.min(1)
        sizes = _sizes(least, num_tables)
        enough = last | (sizes[:, -1] >= room)
        done = heads[enough]
        second[done], soonest[done], depth[done] = hits[enough], least[enough], bits
        taken[done] = (sizes[enough] <= room).sum(1) - 1
        open_heads = np.setdiff1d(open_heads, done)
        if not len(open_heads):
            break
    return Collisions(depth, taken, second, soonest)


def _sizes(soonest: Array, num_tables: int) -> Array:
    """The number of tokens that the first 0, 1, .. L tables sample: int64 `[A, L + 1]`, never falling."""
    width = num_tables + 1
    sampled = np.flatnonzero(soonest < NEVER)
    head = sampled // max(soonest.shape[1], 1)
    counts = np.bincount(head * width + soonest.ravel()[sampled], minlength=len(soonest) * width)
    return counts.reshape(-1, width).cumsum(1)
