"""Low-rank factors of a matrix of keys: K ~ A B^T with A = K B.

Shapes  rows [m, W] -> basis [W, r]      rows [n, W], basis [W, r] -> factors [n, r]
        factors [G, n, r], basis [G, D, r] -> rows [G, n, D]
Formula basis: the r eigenvectors of rows^T rows with the largest eigenvalues. They are the right singular
        vectors of rows, so that |rows - rows B B^T| is the least any matrix of rank r attains, at the
        price of one product and an eigenproblem of W x W instead of a decomposition of m x W.
Dtypes  fp16/bf16/fp32; products in fp32, but rows^T rows and its eigenvectors in fp64: it holds squares,
        and fp32 would lose directions 3000 times weaker than the strongest. Results are fp32
"""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 128
"""Rows per product in `project`."""


def principal_directions(rows: Tensor, rank: int) -> Tensor:
    """Orthonormal columns; with fewer than `rank` independent rows the remaining ones are arbitrary.

    Raises ValueError if `rank` is not between 1 and W.
    """
    width = rows.shape[1]
    if not 1 <= rank <= width:
        raise ValueError(f"rank is between 1 and the {width} columns, not {rank}")
    each = rows.double()
    vectors: Tensor = torch.linalg.eigh(each.T @ each).eigenvectors  # ascending eigenvalues
    return vectors[:, width - rank :].flip(1).float().contiguous()


def project(rows: Tensor, basis: Tensor, *, start: int = 0) -> Tensor:
    """Factors of rows that are number `start` and on of their sequence.

    Products have `GRID` rows, filled up with zeros, at fixed places of the sequence: matrix products of other
    sizes round otherwise, and a row's factors must not depend on which rows it arrived with.
    """
    count = rows.shape[0]
    out = torch.empty(count, basis.shape[1], dtype=torch.float32, device=rows.device)
    block = torch.zeros(GRID, rows.shape[1], dtype=torch.float32, device=rows.device)
    begin = 0
    while begin < count:
        place = (start + begin) % GRID
        end = min(count, begin + GRID - place)
        block[place : place + end - begin] = rows[begin:end]
        out[begin:end] = (block @ basis)[place : place + end - begin]
        begin = end
    return out


def project_reference(rows: Tensor, basis: Tensor) -> Tensor:
    """The formula."""
    return rows.float() @ basis


def rebuild(factors: Tensor, basis: Tensor) -> Tensor:
    """Rows of several groups, each with its own part of the basis."""
    return factors.float() @ basis.float().transpose(1, 2)
