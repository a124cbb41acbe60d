"""Products in blocks: no bit of a unit's score depends on how many units there are."""

from __future__ import annotations

import pytest
import torch

from stratakv.kernels.ragged import cut_rows, in_blocks


@pytest.mark.parametrize("dim", [3, 64])
@pytest.mark.parametrize("repeats", [1, 4])
def test_a_block_is_a_product_of_one_shape(repeats: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, units = torch.randn(2, repeats, dim, generator=generator), torch.randn(2, 2500, dim, generator=generator)
    shapes = set()

    def score(some: torch.Tensor) -> torch.Tensor:
        shapes.add((some.shape, some.is_contiguous()))
        return q @ some.transpose(1, 2)

    whole = in_blocks(score, units)
    torch.testing.assert_close(whole, q @ units.transpose(1, 2))
    for total in (0, 1, 1023, 1024, 1025, 2049):
        assert torch.equal(in_blocks(score, units[:, :total]), whole[..., :total])
    assert shapes == {((2, 1024, dim), True)}


def test_rows_are_cut() -> None:
    scores = torch.arange(6.0).view(2, 1, 3)
    assert cut_rows(scores, None) is scores
    inf = float("inf")
    assert cut_rows(scores, torch.tensor([2, 0])).tolist() == [[[0, 1, -inf]], [[-inf, -inf, -inf]]]
    assert cut_rows(torch.full((1, 1, 2), float("nan")), torch.tensor([0])).tolist() == [[[-inf, -inf]]]
