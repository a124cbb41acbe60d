"""Low-rank factors: as good as a truncated SVD, and the same bits in whatever pieces rows arrive."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from stratakv.kernels.low_rank import GRID, principal_directions, project, project_reference, rebuild


def decaying(count: int, width: int, *, power: float = 1.0, seed: int = 0) -> Tensor:
    """Rows whose i-th direction has standard deviation i^-power, in a basis that is not the axes'."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return torch.randn(count, width, generator=generator) * torch.arange(1, width + 1) ** -power @ turn


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rank", [1, 16, 96, 191])
def test_no_rank_does_better(rank: int, power: float) -> None:
    """The error of a truncated SVD is the smallest there is (Eckart and Young)."""
    rows = decaying(600, 192, power=power)
    basis = principal_directions(rows, rank)
    assert basis.shape == (192, rank)
    assert_close("basis^T basis", basis.T @ basis, torch.eye(rank))
    error = (rows - project(rows, basis) @ basis.T).norm().item()
    least = torch.linalg.svdvals(rows.double())[rank:].norm().item()
    assert abs(error - least) <= 1e-3 * least


def test_by_hand() -> None:
    """Most of it lies along (3, 4), the rest across."""
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [-3.0, -4.0], [0.8, -0.6]])
    basis = principal_directions(rows, 1)
    assert_close("projector", basis @ basis.T, torch.tensor([[0.36, 0.48], [0.48, 0.64]]))
    factors = project(rows, basis)
    assert_close("lengths", factors.abs(), torch.tensor([[5.0], [10.0], [5.0], [0.0]]))
    assert principal_directions(rows, 2)[:, 0].dot(basis[:, 0]).abs() == pytest.approx(1.0), "the largest first"


def test_few_rows_still_give_a_basis() -> None:
    for count in (0, 3):
        rows = decaying(count, 24)
        basis = principal_directions(rows, 8)
        assert_close("basis^T basis", basis.T @ basis, torch.eye(8))
        assert_close("rows", project(rows, basis) @ basis.T, rows)


@pytest.mark.parametrize("rank", [0, 25])
def test_a_rank_there_is_not_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 24 columns, not {rank}"):
        principal_directions(torch.zeros(4, 24), rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("start", [0, 48, GRID - 1, 5 * GRID])
@pytest.mark.parametrize("count", [0, 1, GRID, 3 * GRID + 7])
def test_projection_against_the_reference(count: int, start: int, dtype: torch.dtype) -> None:
    rows = decaying(count, 64).to(dtype)
    basis = principal_directions(decaying(200, 64), 20)
    factors = project(rows, basis, start=start)
    assert factors.dtype == torch.float32
    assert_close("factors", factors, project_reference(rows, basis))


@pytest.mark.parametrize(("width", "rank"), [(192, 96), (1024, 160)])
@pytest.mark.parametrize("step", [1, 16, 48, 112])
def test_pieces_give_the_same_bits(step: int, width: int, rank: int) -> None:
    rows = torch.randn(336, width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(torch.randn(width, rank, generator=torch.Generator().manual_seed(1))).Q
    pieces = [project(rows[at : at + step], basis, start=at) for at in range(0, 336, step)]
    assert torch.equal(torch.cat(pieces), project(rows, basis))


def test_rebuilding_gives_each_group_its_part() -> None:
    groups, dim, rank = 3, 8, 24
    rows = decaying(50, groups * dim)
    basis = principal_directions(rows, rank)
    factors = project(rows, basis).half().expand(groups, -1, -1)
    expected = rows.view(50, groups, dim).transpose(0, 1)
    assert_close("rows", rebuild(factors, basis.view(groups, dim, rank)), expected, torch.float16)
