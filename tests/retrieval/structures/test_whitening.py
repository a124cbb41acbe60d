"""A basis keeps the products of keys with the queries that are asked."""

from __future__ import annotations

import pytest
import torch

from stratakv.retrieval.structures.whitening import captured_share, covariance, query_whitened_basis, second_moment

HEADS, DIM = 2, 8


def drawn(count: int, spread: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows `[G, count, D]` whose channels have that spread."""
    return torch.randn(HEADS, count, DIM, generator=torch.Generator().manual_seed(seed)) * spread


KEYS = drawn(500, torch.linspace(2, 0.1, DIM), 0)
QUERIES = drawn(400, torch.linspace(0.1, 2, DIM), 1).unsqueeze(1)


def test_moments() -> None:
    rows = QUERIES.flatten(1, 2).double()
    expected = torch.einsum("gnd,gne->gde", rows, rows) / 400
    torch.testing.assert_close(second_moment(QUERIES), expected.float(), rtol=1e-5, atol=1e-5)
    for head in range(HEADS):
        torch.testing.assert_close(covariance(KEYS)[head], torch.cov(KEYS[head].T, correction=0))
    assert (covariance(KEYS[:, :0]) == 0).all()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_all_directions_keep_every_product(parts: int) -> None:
    basis = query_whitened_basis(covariance(KEYS), second_moment(QUERIES), DIM, parts)
    found = (QUERIES[:, 0, :5] @ basis.of_queries) @ (KEYS[:, :7] @ basis.of_keys).transpose(1, 2)
    torch.testing.assert_close(found, QUERIES[:, 0, :5] @ KEYS[:, :7].transpose(1, 2), rtol=1e-3, atol=1e-3)
    assert captured_share(second_moment(QUERIES), covariance(KEYS), basis) == pytest.approx(1, abs=0.01)


def test_few_directions_keep_more_than_the_keys_own() -> None:
    """Directions of the keys alone are those that nobody asks for here."""
    cov, moment = covariance(KEYS), second_moment(QUERIES)
    asked = query_whitened_basis(cov, moment, 4, 1)
    blind = query_whitened_basis(cov, torch.eye(DIM).expand(HEADS, -1, -1), 4, 1)
    shares = [captured_share(moment, cov, basis) for basis in (asked, blind)]
    assert 1 > shares[0] > shares[1] + 0.1


@pytest.mark.parametrize(("width", "parts"), [(0, 1), (DIM + 1, 1), (6, 4)])
def test_widths_that_cannot_be(width: int, parts: int) -> None:
    with pytest.raises(ValueError, match="the width is a multiple of"):
        query_whitened_basis(covariance(KEYS), second_moment(QUERIES), width, parts)
