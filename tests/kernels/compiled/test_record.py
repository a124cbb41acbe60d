"""Numbers that are not whole in a row of whole ones."""

from __future__ import annotations

import numpy as np
import pytest

from stratakv.kernels.compiled.record import WIDTH, bits


@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, 1e-6, -3.5e38, float("inf")])
def test_a_number_comes_back_from_a_row(number: float) -> None:
    row = np.zeros(WIDTH, dtype=np.int64)
    row[-1] = bits(number)
    assert str(row.view(np.float64)[-1]) == str(np.float64(number))
