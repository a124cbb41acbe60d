"""Sums over blocks: x as it is or in whole steps, the same bits for one vector and for several."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from block_rows import KINDS, NAMES, WAYS, draw_rows, product_of

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.block_code import BLOCK_NUMBERS


@KINDS
@WAYS
def test_a_vector_has_the_same_bits_alone_and_among_others(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(2)
    columns = 3 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = draw_rows(rng, name, 9, columns), rng.standard_normal((11, columns)).astype(np.float32)
    alone = np.concatenate([product_of(name, weight, x[b : b + 1].copy(), rounded=rounded) for b in range(len(x))])
    for batch in range(1, len(x) + 1):
        np.testing.assert_array_equal(product_of(name, weight, x[:batch].copy(), rounded=rounded), alone[:batch])


@pytest.mark.parametrize("name", [name for name in NAMES[1:] if name != "MXFP4"])
@WAYS
@pytest.mark.parametrize("size", [np.nan, np.inf])
def test_a_row_that_is_no_number_spoils_itself_only(name: str, size: float, rounded: bool) -> None:
    """Every scale of MXFP4 is a number: a power of two."""
    rng = np.random.default_rng(4)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = draw_rows(rng, name, 5, columns), rng.standard_normal((4, columns)).astype(np.float32)
    weight[2] = draw_rows(rng, name, 1, columns, np.array([size]))[0]
    finite = np.isfinite(product_of(name, weight, x, rounded=rounded))
    assert (finite == [True, True, False, True, True]).all()


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-31, 1e-29, 1, 1e37])
def test_numbers_are_rounded_to_the_nearest_step(size: float) -> None:
    """What is too small to have steps is 0."""
    rng = np.random.default_rng(7)
    weight, x = np.eye(32, dtype=np.int8).view(np.uint8), (size * rng.standard_normal((9, 32))).astype(np.float32)
    step = abs(x).max(-1, keepdims=True) / 32767
    assert (abs(product_of("I8", weight, x, rounded=True).astype(np.float64) - x) <= 0.501 * step + 1e-30).all()
