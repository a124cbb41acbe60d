"""Rows of a compiled step's table for tests, worked through by a team, and memory that shows who writes beside it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.products import prepare, product, product_bytes
from stratakv.kernels.compiled.team import Team

GUARD = 64
"""Bytes behind each buffer that nobody may write."""


@cache
def team() -> Team:
    return Team(3)


def bits(number: float) -> int:
    """A number as a row holds it."""
    return int(np.float64(number).view(np.int64))


def work(*rows: np.ndarray, threads: int = 2) -> None:
    team().run(np.stack(rows), threads)


def nothing_yet(*shape: int) -> Tensor:
    """Room for results, in which there is no number yet."""
    return torch.full(shape, torch.nan)


class Buffer:
    """Memory of `count` numbers, none of which is one yet, and behind them some that stay so."""

    def __init__(self, count: int, dtype: Any = np.float32) -> None:
        size = count * np.dtype(dtype).itemsize
        self._bytes = np.full(size + GUARD, 0xFF, np.uint8)
        self.data = self._bytes[:size].view(dtype)

    @property
    def address(self) -> int:
        return int(self._bytes.ctypes.data)

    def check(self) -> None:
        assert (self._bytes[-GUARD:] == 0xFF).all(), "written behind the end"


def product_row(weight: Tensor, y: Tensor, a: Tensor, kind: int, *, chunk: int = 3) -> np.ndarray:
    """y = W a; `a` `[B, C]`, `y` `[B, N]`."""
    rows, columns = weight.shape
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.PREPARE, r.MEMORY]] = product.address, prepare.address, product_bytes(len(y), columns)
    row[[r.ITEMS, r.BARRIER]] = -(-rows // chunk), 1
    row[[r.P_BATCH, r.P_ROWS, r.P_COLUMNS, r.P_CHUNK]] = len(y), rows, columns, chunk
    row[[r.P_KIND, r.P_WEIGHT, r.P_A]] = kind, weight.data_ptr(), a.data_ptr()
    row[[r.P_Y, r.P_STRIDE, r.P_INPUT, r.P_FACTOR, r.P_TOTAL]] = (
        y.data_ptr(), rows, r.PLAIN, bits(1.0), bits(1.0),
    )  # fmt: skip
    return row
