"""Nearest codewords against the formula, and the ranking of coded tokens against token-by-token rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.kernels.codebook_scores import (
    half_norms,
    nearest_codewords,
    nearest_codewords_reference,
    shared_scores,
    union_scores,
    union_scores_reference,
)
from stratakv.kernels.topk_pages import group_scores


def metric_of(groups: int, dim: int, generator: torch.Generator) -> Tensor:
    """Ill-conditioned, as that of real queries: one direction weighs a hundred times another."""
    queries = torch.randn(groups, 4 * dim, dim, generator=generator) * torch.logspace(0, -2, dim)
    turn = torch.linalg.qr(torch.randn(groups, dim, dim, generator=generator)).Q
    queries = queries @ turn
    return queries.transpose(1, 2) @ queries


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 16, 1024, 1500])
def test_nearest_codewords(tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    keys = torch.randn(2, tokens, 16, generator=generator).to(dtype)
    codewords, metric = torch.randn(2, 37, 16, generator=generator), metric_of(2, 16, generator)
    found = nearest_codewords(keys, metric, codewords, half_norms(metric, codewords))
    assert torch.equal(found, nearest_codewords_reference(keys, metric, codewords))


def test_distance_is_that_of_whitened_vectors() -> None:
    """(k - c) H (k - c)^T = |(k - c) L|^2, and half of it is 1/2 k H k^T minus what is maximised."""
    generator = torch.Generator().manual_seed(0)
    metric = metric_of(1, 16, generator).double()[0] + 1e-6 * torch.eye(16)
    keys, codewords = (
        torch.randn(50, 16, generator=generator).double(),
        torch.randn(9, 16, generator=generator).double(),
    )
    apart = keys.unsqueeze(1) - codewords
    distances = torch.einsum("nci,ij,ncj->nc", apart, metric, apart)
    whitened = (apart @ torch.linalg.cholesky(metric)).square().sum(-1)
    torch.testing.assert_close(whitened, distances)
    norms = half_norms(metric.unsqueeze(0), codewords.unsqueeze(0))[0].double()
    kept = keys @ metric @ codewords.T - norms
    torch.testing.assert_close(
        ((keys @ metric) * keys).sum(-1, keepdim=True) - 2 * kept, distances, rtol=1e-4, atol=1e-3
    )


def table_and_cells(
    seed: int, groups: int = 2, heads: int = 3, width: int = 11, tokens: int = 60
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(groups, heads, width, generator=generator)
    return table, torch.randint(0, width - 2, (groups, tokens), generator=generator)  # two cells stay empty


@pytest.mark.parametrize("seed", range(5))
def test_shared_scores(seed: int) -> None:
    """As if every token's scores had been written out."""
    table, cells = table_and_cells(seed)
    each = table.gather(2, cells.unsqueeze(1).expand(-1, table.shape[1], -1))
    torch.testing.assert_close(shared_scores(table, cells), group_scores(each))


@pytest.mark.parametrize("count", [1, 7, 30, 60])
@pytest.mark.parametrize("width", [11, 200])
def test_union_scores(count: int, width: int) -> None:
    """The best `count` tokens by the rule, the last tokens first where it does not say."""
    for seed in range(5):
        table, cells = table_and_cells(seed, width=width)
        turns = union_scores_reference(table, cells)
        expected = (turns * 60 - torch.arange(60)).topk(count, largest=False).indices.sort().values
        scores = union_scores(table, cells, count)
        assert torch.equal(scores.topk(count).indices.sort().values, expected)
        assert all(len(set(row)) == 60 for row in scores.tolist())


def test_a_union_of_heads_that_agree_is_what_one_of_them_chooses() -> None:
    table, cells = table_and_cells(0, heads=1, width=62)
    cells[:] = torch.arange(60)
    scores = union_scores(table.expand(-1, 3, -1), cells, 40)
    assert torch.equal(scores.topk(40).indices, table[:, 0, :60].topk(40).indices)


def test_union_by_hand() -> None:
    """Two heads over six tokens, one per cell: head 0 ranks 5 4 3 2 1 0, head 1 ranks 0 5 1 2 3 4.

    In turns: 5 (head 0's first), 0 (head 1's first), 4 (head 0's second; head 1's second is 5, taken), 3, 1, 2.
    """
    table = torch.tensor([[[0.0, 1, 2, 3, 4, 5], [9.0, 7, 6, 5, 4, 8]]])
    scores = union_scores(table, torch.arange(6).unsqueeze(0), 6)
    assert scores.argsort(descending=True).tolist() == [[5, 0, 4, 3, 1, 2]]
    shared_cell = torch.tensor([[0, 1, 1, 0]])
    scores = union_scores(torch.tensor([[[2.0, 1.0]]]), shared_cell, 4)
    assert scores.argsort(descending=True).tolist() == [[3, 0, 2, 1]], "within a cell, the last token first"
