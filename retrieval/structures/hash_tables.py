"""Hash tables of one layer's tokens: they tell who shares a bucket with a query, and in how many tables.

Shapes  G KV heads (A of them asked), R query heads each, L tables, n tokens
State   per table the token ids sorted by code, uint16, and where each code begins. Codes have their first bit
        highest, so that the first `depth` bits name a bucket that is a contiguous run too: one sorting serves
        every depth.

Tables grow in *shards* whose sizes depend on the number of tokens alone: 16384 as often as they fit, then halves
of that down to 1024. The rest, less than 1024 tokens, is unsorted and compared code by code. Equal shards merge
as in a log-structured merge tree (O'Neil et al., 1996), so that a token is sorted five times at most.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALLEST, LARGEST = 1024, 16384
"""Tokens of a shard; ids within the largest, and the ends of its buckets, fit in uint16."""
NEVER = np.iinfo(np.int16).max
"""A number larger than any number of tables."""


def shard_sizes(count: int) -> list[int]:
    """The sizes of the shards of `count` tokens, largest first."""
    halves = (LARGEST >> i for i in range(1, (LARGEST // SMALLEST).bit_length()))
    return [LARGEST] * (count // LARGEST) + [size for size in halves if count & size]


class Shard(NamedTuple):
    """Sorted tables of a run of neighbouring tokens."""

    order: Array
    """uint16 `[G, L, m]`: tokens by code, ascending among equals, from 0."""
    starts: Array
    """uint16 `[G, L, 2^bits + 1]`: where a code begins in `order`."""

    @classmethod
    def sort(cls, codes: Array, bits: int) -> Shard:
        """Sort the tokens with these `codes` int16 `[G, L, m]`."""
        order = np.empty(codes.shape, dtype=np.uint16)
        starts = np.zeros((*codes.shape[:2], (1 << bits) + 1), dtype=np.uint16)
        table = np.arange(codes.shape[1])[:, None] << bits
        for g, code in enumerate(codes):
            order[g] = np.argsort(code, axis=-1, kind="stable")  # a radix sort, for int16
            counts = np.bincount((code + table).ravel(), minlength=table.size << bits).reshape(table.size, 1 << bits)
            np.cumsum(counts, axis=-1, out=starts[g, :, 1:])
        return cls(order, starts)

    def codes(self) -> Array:
        """The codes that the tables were made from, int16 `[G, L, m]`."""
        counts = np.diff(self.starts, axis=-1)
        code = np.broadcast_to(np.arange(counts.shape[-1], dtype=np.int16), counts.shape)
        by_code = np.repeat(code.ravel(), counts.ravel()).reshape(self.order.shape)
        codes = np.empty_like(by_code)
        np.put_along_axis(codes, self.order.astype(np.intp), by_code, axis=-1)
        return codes

    def buckets(self, heads: Array, wanted: Array, shift: int) -> tuple[Array, Array]:
        """The first place and the size of the bucket of `wanted` `[A, R, L]`, without its last `shift` bits, in each
        table of `heads` `[A]`: int64 `[A, R, L]` each."""
        low = (wanted >> shift << shift).astype(np.intp)
        head, table = heads[:, None, None], np.arange(wanted.shape[2])
        begin = self.starts[head, table, low].astype(np.intp)
        return begin, self.starts[head, table, low + (1 << shift)] - begin


class HashTables:
    """The tables of one sequence, with at most 15 bits and 32766 tables."""

    def __init__(self, codes: Array, bits: int) -> None:
        """Begin with tokens of these `codes` int16 `[G, L, n]`, n >= 0."""
        self.bits = bits
        self.count = 0
        self._shards: list[Shard] = []
        self._rest = codes[..., :0].copy()
        self.append(codes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of KV heads, tables and tokens."""
        return self._rest.shape[0], self._rest.shape[1], self.count

    @property
    def codes(self) -> Array:
        """The codes of all tokens, int16 `[G, L, n]`."""
        return self._codes_from(0)

    def append(self, codes: Array) -> None:
        """Add the tokens with these `codes` int16 `[G, L, n]`."""
        self._resize(self.count + codes.shape[-1], codes)

    def truncate(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        if count < self.count:
            self._resize(count, self._rest[..., :0])

    def _codes_from(self, shard: int, *further: Array) -> Array:
        """The codes of shard number `shard` and of all tokens after it, int16 `[G, L, m]`."""
        return np.concatenate([*(some.codes() for some in self._shards[shard:]), self._rest, *further], axis=-1)

    def _resize(self, count: int, further: Array) -> None:
        """Keep the first `count` of the tokens held followed by those with codes `further`, and sort what changed."""
        sizes, kept = shard_sizes(count), 0
        for size, shard in zip(sizes, self._shards, strict=False):
            if size != shard.order.shape[-1]:
                break
            kept += 1
        begin = sum(sizes[:kept])
        codes = self._codes_from(kept, further)[..., : count - begin]
        del self._shards[kept:]
        at = 0
        for size in sizes[kept:]:
            self._shards.append(Shard.sort(codes[..., at : at + size], self.bits))
            at += size
        self._rest, self.count = codes[..., at:].copy(), count

    def most_colliding(self, heads: Array, wanted: Array, depth: int) -> Array:
        """A cheap upper bound on the tokens that collide twice with any of a head's queries; int64 `[A]`. Arguments as
        those of `second_hits`."""
        shift = self.bits - depth
        most = np.full(len(heads), self._rest.shape[-1])
        for shard in self._shards:
            most += shard.buckets(heads, wanted, shift)[1].sum((1, 2)) // 2
        return most

    def second_hits(self, heads: Array, wanted: Array, depth: int) -> Array:
        """The number of tables, from the first on, until a token collides with a query for the second time.

        Args:
            heads: int64 `[A]`, KV heads.
            wanted: codes of their queries, int16 `[A, R, L]`.
            depth: bits that must agree.

        Returns:
            int16 `[A, R, n]`, 2 to L; `NEVER` if there are fewer than two collisions.
        """
        shift = self.bits - depth
        runs = [self._second_in(shard, heads, wanted, shift) for shard in self._shards]
        runs.append(self._second_in_rest(heads, wanted, shift))
        return np.concatenate(runs, axis=-1)

    def _second_in(self, shard: Shard, heads: Array, wanted: Array, shift: int) -> Array:
        """`second_hits` within one shard: the tokens of all its buckets are laid end to end."""
        asked, repeats, tables = wanted.shape
        size = shard.order.shape[-1]
        begins, sizes = (part.ravel() for part in shard.buckets(heads, wanted, shift))
        table = np.arange(tables)
        run = np.broadcast_to((heads[:, None, None] * tables + table) * size, wanted.shape).ravel() + begins
        ends = np.cumsum(sizes)
        tokens = shard.order.ravel()[np.arange(sizes.sum()) + np.repeat(run - (ends - sizes), sizes)]
        row = np.repeat(np.arange(asked * repeats) * size, tables)
        number = np.tile((table + 1).astype(np.int16), asked * repeats)
        second = _second_smallest(tokens + np.repeat(row, sizes), np.repeat(number, sizes), asked * repeats * size)
        return second.reshape(asked, repeats, size)

    def _second_in_rest(self, heads: Array, wanted: Array, shift: int) -> Array:
        """`second_hits` within the unsorted rest, compared code by code."""
        asked, repeats, tables = wanted.shape
        size = self._rest.shape[-1]
        equal = (self._rest[heads] >> shift)[:, None] == (wanted >> shift)[..., None]
        line, token = np.divmod(np.flatnonzero(equal), max(size, 1))
        row, table = np.divmod(line, tables)
        second = _second_smallest(row * size + token, (table + 1).astype(np.int16), asked * repeats * size)
        return second.reshape(asked, repeats, size)


def _second_smallest(cells: Array, numbers: Array, count: int) -> Array:
    """The second smallest of the int16 `numbers` that fall into each of `count` cells; `NEVER` if there is no second.
    Within a cell all numbers differ."""
    first, second = np.full((2, count), NEVER, dtype=np.int16)
    np.minimum.at(first, cells, numbers)
    later = np.flatnonzero(numbers > first[cells])
    np.minimum.at(second, cells[later], numbers[later])
    return second
