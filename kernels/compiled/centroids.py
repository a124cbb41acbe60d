"""k-means of vectors of eight numbers, 256 centroids: what a product codebook learns of one KV head's keys.

A vector belongs to the centroid with the largest x.c - |c|^2 / 2. That and the centroid's number are one integer, so
that the largest of all is found without a branch: the last 8 bits of the score give way to the number, so that of two
which are that near either is right.

Shapes  x fp32 [n, M, 8]   begins int64 [256], the vectors that are centroids at first   found fp32 [M, 256, 8], written
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import float32, int32, int64

from .native import as_int, floats, longs, loop, wholes
from .operation import Operation

CENTROIDS, WIDTH = 256, 8
_LOWEST = int32(-(1 << 31))
_SCRATCH = CENTROIDS * (2 * WIDTH + 2)
"""Numbers that one head needs to work in: columns, sums, a bias and a count for each centroid."""


@loop
def _nearest(x: Any, columns: Any, bias: Any) -> Any:
    """The number of the centroid that a vector belongs to."""
    x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    best = _LOWEST
    for c in range(CENTROIDS):
        score = bias[c] + x0 * columns[0, c] + x1 * columns[1, c] + x2 * columns[2, c] + x3 * columns[3, c]
        score += x4 * columns[4, c] + x5 * columns[5, c] + x6 * columns[6, c] + x7 * columns[7, c]
        bits = as_int(score)
        bits ^= (bits >> int32(31)) & int32(0x7FFFFFFF)  # in the order of the numbers
        best = max(best, (bits & int32(-CENTROIDS)) | int32(c))
    return int64(best & int32(CENTROIDS - 1))


def _learn(vectors: int, begins: int, found: int, scratch: int, count: int, parts: int, iterations: int) -> None:
    x, first = floats(vectors, (count, parts, WIDTH)), longs(begins, CENTROIDS)
    centroids = floats(found, (parts, CENTROIDS, WIDTH))
    columns = floats(scratch, (WIDTH, CENTROIDS))
    sums = floats(scratch + 4 * CENTROIDS * WIDTH, (CENTROIDS, WIDTH))
    bias = floats(scratch + 8 * CENTROIDS * WIDTH, CENTROIDS)
    members = wholes(scratch + 4 * CENTROIDS * (2 * WIDTH + 1), CENTROIDS)
    for part in range(parts):
        mine = centroids[part]
        for c in range(CENTROIDS):
            for d in range(WIDTH):
                mine[c, d] = x[first[c], part, d]
        for _ in range(iterations):
            for c in range(CENTROIDS):
                square = float32(0)
                for d in range(WIDTH):
                    columns[d, c], sums[c, d] = mine[c, d], float32(0)
                    square += mine[c, d] * mine[c, d]
                bias[c], members[c] = float32(-0.5) * square, int32(0)
            for i in range(count):
                c = _nearest(x[i, part], columns, bias)
                members[c] += int32(1)
                for d in range(WIDTH):
                    sums[c, d] += x[i, part, d]
            for c in range(CENTROIDS):
                if members[c] > 0:  # nobody's stays where it is
                    for d in range(WIDTH):
                        mine[c, d] = sums[c, d] / float32(members[c])


learn = Operation(_learn, 7)
"""One head: addresses of x, begins, found and room to work in, then n, M, and how often means are taken."""


def learned(x: np.ndarray, parts: int, begins: np.ndarray, iterations: int, threads: int = 1) -> np.ndarray:
    """The centroids fp32 `[G, M, 256, 8]` of x fp32 `[G, n, M * 8]`, n >= 256, after so many means, that began as the
    vectors `begins`, int64 `[256]`. Heads go side by side over `threads`; numbers do not depend on how many."""
    x = np.ascontiguousarray(x)
    found = np.empty((len(x), parts, CENTROIDS, WIDTH), dtype=np.float32)

    def of_head(head: int) -> None:
        room = np.empty(_SCRATCH, dtype=np.float32)
        memory = x[head].ctypes.data, begins.ctypes.data, found[head].ctypes.data, room.ctypes.data
        learn(*memory, x.shape[1], parts, iterations)

    with ThreadPoolExecutor(min(threads, len(x))) as pool:
        list(pool.map(of_head, range(len(x))))
    return found
