"""Products with blocks against gguf's own expansion of them, in fp64."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from block_rows import KINDS, WAYS, allowed_of, draw_rows, numbers_of, product_of, vectors_of_steps

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.block_code import BLOCK_NUMBERS


@KINDS
@WAYS
@pytest.mark.parametrize("seed", range(6))
def test_the_product_is_that_of_the_expanded_weights(name: str, seed: int, rounded: bool) -> None:
    rng = np.random.default_rng(seed)
    columns = BLOCK_NUMBERS[getattr(record, name)] * int(rng.integers(1, 8))
    count, batch = int(rng.integers(1, 40)), seed + 1
    begin = int(rng.integers(0, count))
    end = int(rng.integers(begin, count + 1))
    weight = draw_rows(rng, name, count, columns)
    x, expanded = vectors_of_steps(rng, batch, columns), numbers_of(name, weight)[begin:end]
    difference = abs(product_of(name, weight, x, begin, end, rounded=rounded) - x.astype(np.float64) @ expanded.T)
    assert (difference <= allowed_of(expanded, x)).all() if end > begin else difference.size == 0


@KINDS
@WAYS
def test_a_row_has_the_same_bits_wherever_it_is(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(6)
    columns = BLOCK_NUMBERS[getattr(record, name)]
    weight, x = draw_rows(rng, name, 5, columns), rng.standard_normal((1, columns)).astype(np.float32)
    all_rows = product_of(name, weight, x, rounded=rounded)
    for begin in range(len(weight)):
        np.testing.assert_array_equal(product_of(name, weight, x, begin, rounded=rounded), all_rows[:, begin:])


@KINDS
@WAYS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_spoils_itself_only(name: str, bad: float, rounded: bool) -> None:
    rng = np.random.default_rng(5)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = draw_rows(rng, name, 5, columns), rng.standard_normal((4, columns)).astype(np.float32)
    if name in ("I8", "Q8_0"):
        weight |= 1  # times 0, infinity is no number, and here it is to be what comes out
    x[1, 7] = bad
    finite = np.isfinite(product_of(name, weight, x, rounded=rounded))
    assert not finite[1].any()
    assert finite[[0, 2, 3]].all()
