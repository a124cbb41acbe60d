"""Instructions that compiled loops have and numba has no word for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from stratakv.kernels.compiled.native import exp, narrow, widen


@njit
def each(x: Any, powers: Any, halves: Any, wide: Any) -> None:
    for i in range(x.shape[0]):
        powers[i], halves[i] = exp(x[i]), narrow(x[i])
        wide[i] = widen(halves[i])


def test_powers_and_halves() -> None:
    edges = np.array([0, -0.0, 1, -1, 88, -86.9, 3e38, -3e38, 1e-40, np.inf, -np.inf, np.nan], dtype=np.float32)
    x = np.concatenate([edges, np.random.default_rng(0).normal(0, 30, 5000).astype(np.float32).clip(-86, 88)])
    powers, halves, wide = np.empty_like(x), np.empty(len(x), dtype=np.uint16), np.empty_like(x)
    each(x, powers, halves, wide)
    expected = torch.from_numpy(x).bfloat16()
    torch.testing.assert_close(torch.from_numpy(wide), expected.float(), rtol=0, atol=0, equal_nan=True)
    inside = np.abs(x) <= 88
    torch.testing.assert_close(
        powers[inside], np.exp(x[inside].astype(np.float64)).astype(np.float32), rtol=3e-7, atol=0
    )
    assert powers[7] == powers[10] == 0
    assert 1e38 < powers[6] == powers[9] < np.inf
    assert np.isnan(powers[11])
