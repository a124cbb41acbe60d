"""Hash tables: buckets hold what comparing every code would find, at every depth and after every change."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.retrieval.structures.hash_tables import NEVER, Array, HashTables, shard_sizes

BITS = 8
COUNTS = [0, 5, 1023, 1024, 3500, 18_000]


def draw_codes(*shape: int, seed: int = 0, skewed: bool = False) -> Array:
    """Uniform ones, or mostly the same few: then buckets are empty or hold a great part."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << BITS, shape)
    few = np.array([0, (1 << BITS) - 1, 17])
    return (few[codes % 3] if skewed else codes).astype(np.int16)


def second_hits_by_comparing(codes: Array, heads: Array, wanted: Array, depth: int) -> Array:
    """As `HashTables.second_hits`, from all codes `[G, L, n]`."""
    shift = BITS - depth
    equal = (codes[heads] >> shift)[:, None] == (wanted >> shift)[..., None]
    so_far = equal.cumsum(2)
    return np.where(so_far[:, :, -1] >= 2, (so_far >= 2).argmax(2) + 1, NEVER)


def test_shards_depend_on_the_count_alone() -> None:
    assert shard_sizes(1023) == []
    assert shard_sizes(1024 * 3 + 7) == [2048, 1024]
    assert shard_sizes(40_000) == [16384, 16384, 4096, 2048, 1024]
    for count in range(0, 100_000, 977):
        sizes = shard_sizes(count)
        assert 0 <= count - sum(sizes) < 1024
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("skewed", [False, True], ids=["uniform", "skewed"])
@pytest.mark.parametrize("depth", [4, 7, 8])
@pytest.mark.parametrize("count", COUNTS)
def test_buckets_find_what_comparing_finds(count: int, depth: int, skewed: bool) -> None:
    codes, wanted = draw_codes(3, 12, count, skewed=skewed), draw_codes(3, 2, 12, seed=1, skewed=skewed)
    tables = HashTables(codes, BITS)
    assert tables.shape == (3, 12, count)
    assert np.array_equal(tables.codes, codes)
    for heads in (np.arange(3), np.array([2]), np.array([0, 2])):
        found = tables.second_hits(heads, wanted[heads], depth)
        assert found.dtype == np.int16
        assert np.array_equal(found, second_hits_by_comparing(codes, heads, wanted[heads], depth))
        union = (found.min(1) < NEVER).sum(1)
        most = tables.most_colliding(heads, wanted[heads], depth)
        assert (most >= union).all()
        expected = len(wanted[0]) * 12 * count / 2**depth
        assert skewed or (most <= 0.6 * expected + 1023).all(), "half the collisions, and whatever is unsorted"


def test_the_bound_is_reached_where_all_collide_just_twice() -> None:
    codes = np.zeros((1, 2, 2048), dtype=np.int16)
    tables, wanted = HashTables(codes, BITS), np.zeros((1, 1, 2), dtype=np.int16)
    assert tables.most_colliding(np.arange(1), wanted, BITS).tolist() == [2048]
    assert (tables.second_hits(np.arange(1), wanted, BITS) == 2).all()


@pytest.mark.parametrize(
    "steps", [[18_000], [16] * 130, [1000, 24, 3, 1021, 0, 15_000, 2000], [16_384, 16_384]], ids=str
)
def test_pieces_make_the_same_tables(steps: list[int]) -> None:
    codes, wanted = draw_codes(2, 5, sum(steps)), draw_codes(2, 2, 5, seed=1)
    tables, start = HashTables(codes[..., :0], BITS), 0
    for step in steps:
        piece = codes[..., start : start + step].copy()
        tables.append(piece)
        piece[:] = -1
        start += step
    assert_same(tables, HashTables(codes, BITS), wanted)


@pytest.mark.parametrize("kept", [0, 16, 1024, 1500, 5000, 16_384, 18_000, 20_000])
def test_what_was_cut_off_leaves_no_trace(kept: int) -> None:
    codes, wanted = draw_codes(2, 5, 18_000), draw_codes(2, 2, 5, seed=1)
    tables = HashTables(codes, BITS)
    tables.truncate(kept)
    prefix = codes[..., :kept]
    assert_same(tables, HashTables(prefix, BITS), wanted)
    further = draw_codes(2, 5, 2500, seed=2)
    tables.append(further)
    assert_same(tables, HashTables(np.concatenate([prefix, further], -1), BITS), wanted)


def assert_same(tables: HashTables, whole: HashTables, wanted: Array) -> None:
    assert tables.count == whole.count
    assert np.array_equal(tables.codes, whole.codes)
    heads = np.arange(len(wanted))
    assert np.array_equal(tables.second_hits(heads, wanted, 5), whole.second_hits(heads, wanted, 5))
    assert np.array_equal(tables.second_hits(heads, wanted, 5), second_hits_by_comparing(whole.codes, heads, wanted, 5))
