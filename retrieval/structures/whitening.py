"""Few coefficients per key that keep q.k: principal directions of keys as queries see them.

The error of an approximate key k' matters through q.(k - k'), whose mean square over queries is
(k - k')^T M (k - k') with M = E[q q^T] = L L^T. In the coordinates y = L^T k that is a plain distance, so
the directions to keep are those of largest variance of y.

Shapes  G KV heads, D head dim, W coefficients kept (W <= D)
Paper   the weighting is A2ATS's (arXiv 2502.12665)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Basis(NamedTuple):
    """Two bases, fp32 `[G, D, W]` each, with q.k close to (q @ of_queries) . (k @ of_keys); equal with W = D."""

    of_keys: Tensor
    of_queries: Tensor


def second_moment(queries: Tensor) -> Tensor:
    """The mean of q q^T over `queries` `[G, R, p, D]`: `[G, D, D]`."""
    rows = queries.float().flatten(1, 2)
    return rows.transpose(1, 2) @ rows / max(rows.shape[1], 1)


def covariance(rows: Tensor) -> Tensor:
    """The covariance over m of `rows` `[G, m, D]`: `[G, D, D]`; zero for no rows."""
    if not rows.shape[1]:
        return rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2])
    centred = rows - rows.mean(1, keepdim=True)
    return centred.transpose(1, 2) @ centred / rows.shape[1]


def query_whitened_basis(cov: Tensor, moment: Tensor, width: int, parts: int, *, ridge: float = 1e-3) -> Basis:
    """The `width` best directions for keys of covariance `cov` and queries of second moment `moment`, both
    `[G, D, D]`, ordered so that `parts` equal runs of them have alike variance. `ridge` times the mean eigenvalue is
    added to `moment`.

    Raises ValueError if `width` is not a multiple of `parts` up to D.
    """
    dim = cov.shape[-1]
    if not 0 < width <= dim or width % parts:
        raise ValueError(f"the width is a multiple of {parts} parts from 1 to the head dim {dim}, not {width}")
    scale = moment.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    added = ridge * scale[:, None, None] * torch.eye(dim, dtype=cov.dtype, device=cov.device)
    root = torch.linalg.cholesky((moment + added).double())  # [G, D, D]
    directions = torch.linalg.eigh(root.transpose(1, 2) @ cov.double() @ root).eigenvectors.flip(-1)[..., :width]
    directions = directions[..., _snake(width, parts)]
    of_queries = torch.linalg.solve_triangular(root.transpose(1, 2), directions, upper=True)
    return Basis((root @ directions).float().contiguous(), of_queries.float().contiguous())


def _snake(width: int, parts: int) -> Tensor:
    """Order the directions by dealing them, best first, to the parts forwards and backwards in turn."""
    rounds = torch.arange(width).view(-1, parts)
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.t().flatten()


def captured_share(moment: Tensor, cov: Tensor, basis: Basis) -> float:
    """The share of the variance of q.k that the basis keeps, over keys of covariance `cov` and queries of second moment
    `moment`, both `[G, D, D]`. It is the mean over KV heads: one among many that is lost still shows."""
    whole = (moment * cov).sum((1, 2))
    kept_variance = torch.einsum("gdw,gde,gew->gw", basis.of_keys, cov, basis.of_keys)
    asked = torch.einsum("gdw,gde,gew->gw", basis.of_queries, moment, basis.of_queries)
    return float(((kept_variance * asked).sum(1) / whole.clamp_min(1e-30)).mean())
