"""What collisions sample: the deepest buckets and the most tables that a budget has room for, never a part of them."""

from __future__ import annotations

import numpy as np
import pytest
from magicpig_cases import normal
from torch import Tensor

from stratakv.kernels.simhash import random_planes, simhash
from stratakv.retrieval.structures.collision_sample import LEAST_DEPTH, Collisions, collision_sample
from stratakv.retrieval.structures.hash_tables import NEVER, Array, HashTables

BITS = 10


def sample_of(codes: Tensor, wanted: Tensor, begin: int, end: int, room: int) -> tuple[Collisions, HashTables]:
    tables = HashTables(codes.numpy(), BITS)
    return collision_sample(tables, wanted.numpy(), begin, end, room), tables


def union_size(tables: HashTables, wanted: Tensor, head: int, depth: int, taken: int, begin: int, end: int) -> int:
    hits = tables.second_hits(np.array([head]), wanted[[head]].numpy(), depth)[..., begin:end]
    return int((hits.min(1) <= taken).sum())


@pytest.mark.parametrize("room", [0, 1, 30, 100, 400, 900, 1300])
def test_the_deepest_buckets_and_most_tables_that_fit(room: int) -> None:
    """Heads whose queries have more or fewer keys near them go to different depths."""
    keys, q = normal(3, 1400, 64), normal(3, 2, 64, seed=1)
    keys[1] += 1.0 * q[1, :1] * normal(1400, 1, seed=2)
    planes = random_planes(64, BITS, 100, 0)
    codes, wanted = simhash(keys, planes), simhash(q, planes).transpose(1, 2)
    begin, end = 10, 1390
    sample, tables = sample_of(codes, wanted, begin, end, room)
    size = lambda head, depth, taken: union_size(tables, wanted, head, depth, taken, begin, end)  # noqa: E731
    for head in range(3):
        depth, taken = int(sample.depth[head]), int(sample.tables[head])
        assert LEAST_DEPTH <= depth <= BITS
        assert size(head, depth, taken) <= room
        assert taken == 100 or size(head, depth, taken + 1) > room
        assert depth == LEAST_DEPTH or size(head, depth, 100) >= room
        assert depth == BITS or size(head, depth + 1, 100) < room
        hits = tables.second_hits(np.array([head]), wanted[[head]].numpy(), depth)[0, :, :end]
        hits[:, :begin] = NEVER
        assert np.array_equal(sample.second[head], hits)
        assert np.array_equal(sample.soonest[head], hits.min(0))
    if room == 400:
        assert len(set(sample.depth.tolist())) > 1


def seen(sample: Collisions, head: int = 0) -> list[list[int]]:
    """The tokens that each query head of a KV head sampled."""
    return [np.flatnonzero(row <= sample.tables[head]).tolist() for row in sample.second[head]]


def by_hand(*codes: list[int]) -> HashTables:
    """One KV head whose tokens have these codes of 5 bits in each table."""
    return HashTables(np.array([codes], dtype=np.int16), 5)


ASKED: Array = np.zeros((1, 1, 3), dtype=np.int16)
"""One query whose code is 0 in three tables."""


def test_a_second_collision_samples_a_token() -> None:
    """Token 0 collides in all tables, 1 in the first and the last, 2 in one, 3 in none but by its first four bits."""
    tables = by_hand([0, 0, 0, 1], [0, 7, 9, 1], [0, 0, 9, 1])
    sample = collision_sample(tables, ASKED, 0, 4, 2)
    assert (sample.depth.tolist(), sample.tables.tolist()) == ([5], [3])
    assert sample.second.tolist() == [[[2, 3, NEVER, NEVER]]]
    assert seen(sample) == [[0, 1]]
    wider = collision_sample(tables, ASKED, 0, 4, 3)
    assert (wider.depth.tolist(), seen(wider)) == ([4], [[0, 1, 3]])


def test_a_sample_is_never_cut() -> None:
    """Two tokens more come with the third table: with room for one of them, neither is taken."""
    tables = by_hand([0, 0, 0], [0, 7, 7], [0, 0, 0])
    assert [seen(collision_sample(tables, ASKED, 0, 3, room)) for room in range(4)] == [[[]], [[0]], [[0]], [[0, 1, 2]]]


def test_what_is_always_read_is_neither_sampled_nor_counted() -> None:
    tables = by_hand(*[[0] * 6] * 3)
    sample = collision_sample(tables, ASKED, 2, 5, 3)
    assert seen(sample) == [[2, 3, 4]]
    assert sample.second.shape == (1, 1, 5)


def test_query_heads_share_the_room() -> None:
    """The union counts; each head knows which are its own."""
    tables = by_hand([0, 0, 31, 8], [0, 31, 31, 8], [8, 8, 31, 8])
    asked = np.array([[[0, 0, 8], [31, 31, 31]]], dtype=np.int16)
    sample = collision_sample(tables, asked, 0, 4, 3)
    assert sample.tables.tolist() == [3]
    assert seen(sample) == [[0, 1], [2]]
    assert sample.soonest.tolist() == [[2, 3, 2, NEVER]]
    assert seen(collision_sample(tables, asked, 0, 4, 2)) == [[0], [2]]
