"""SimHash: exact codes, and probabilities that are what happens."""

from __future__ import annotations

import math

import pytest
import torch
from closeness import HEAD_SHAPES
from torch import Tensor

from stratakv.kernels.simhash import (
    Planes,
    inclusion_probability,
    inclusion_probability_reference,
    random_planes,
    rounded,
    simhash,
    simhash_reference,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("repeats", "dim"), HEAD_SHAPES)
@pytest.mark.parametrize("count", [0, 1, 300])
def test_against_the_reference(count: int, repeats: int, dim: int, dtype: torch.dtype) -> None:
    """Every bit of every code."""
    planes = random_planes(dim, 10, 40, repeats)
    x = normal(2, count, dim, seed=count).to(dtype)
    codes = simhash(x, planes)
    assert codes.shape == (2, 40, count)
    assert codes.dtype == torch.int16
    assert torch.equal(codes, simhash_reference(x, planes))
    assert count < 300 or 0 <= codes.min() < 30 < 990 < codes.max() < 1024


def test_codes_by_hand() -> None:
    """The first plane asks for the sign of x, the second for that of y; on a plane is not beyond it."""
    planes = Planes(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), 1024.0)
    points = torch.tensor([[3.0, 5.0], [3.0, -5.0], [-3.0, 5.0], [-3.0, -5.0], [0.0, 0.0], [0.0, 1e-30]])
    assert simhash(points, planes).tolist() == [[3, 2, 1, 0, 0, 1]]


@pytest.mark.parametrize("dim", [64, 128, 256, 512])
def test_sums_are_exact(dim: int) -> None:
    """No partial sum leaves the whole numbers of fp32, and rounding hardly turns a vector."""
    planes = random_planes(dim, 10, 150, 0)
    x = normal(100, dim) * 10 ** torch.linspace(-20, 20, 100).unsqueeze(1)
    whole = rounded(x, planes)
    assert torch.equal(whole, whole.round())
    assert torch.equal(planes.normals, planes.normals.round())
    assert 2**22 < planes.normals.abs().sum(-1).max() * planes.reach <= 2**24
    assert torch.equal(whole.abs().amax(-1), torch.full((100,), planes.reach))
    cosine = torch.nn.functional.cosine_similarity(normal(100, dim).double(), whole.double(), dim=-1)
    assert cosine.clamp(max=1).arccos().max() < 1e-3


def test_codes_do_not_depend_on_company() -> None:
    """Vectors hashed alone, in pieces, and by other heads' side."""
    planes, x = random_planes(64, 10, 150, 0), normal(3, 700, 64)
    whole = simhash(x, planes)
    pieces = [simhash(x[:, begin:end], planes) for begin, end in [(0, 1), (1, 258), (258, 300), (300, 700)]]
    assert torch.equal(torch.cat(pieces, -1), whole)
    assert torch.equal(simhash(x[1], planes), whole[1])


def test_planes_come_from_the_seed() -> None:
    one, other = random_planes(64, 8, 20, 3), random_planes(64, 8, 20, 4)
    assert torch.equal(one.normals, random_planes(64, 8, 20, 3).normals)
    assert not torch.equal(one.normals, other.normals)
    assert abs(one.normals.std() / 8 - 1) < 0.03, "standard normal, in eighths"


@pytest.mark.parametrize("cosine", [-0.6, 0.0, 0.3, 0.9])
def test_planes_part_two_vectors_as_their_angle_says(cosine: float) -> None:
    count = 40_000
    planes = random_planes(64, 1, count, 7)
    one, other = torch.linalg.qr(normal(64, 2))[0].T
    turned = cosine * one + math.sqrt(1 - cosine**2) * other
    same = simhash(torch.stack([one, turned]), planes)
    expected = 1 - math.acos(cosine) / math.pi
    assert abs((same[:, 0] == same[:, 1]).double().mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


# Probability of two collisions


def cosine_of(one: Tensor, bits: int) -> Tensor:
    """Where one table agrees with probability `one`."""
    return torch.cos(math.pi * (1 - one ** (1 / bits)))


@pytest.mark.parametrize(("bits", "tables"), [(4, 2), (8, 75), (10, 150), (10, 600), (12, 1000)])
def test_probability_keeps_its_digits(bits: int, tables: int) -> None:
    """Against float64, from P = 1e-6 on: both logarithms, of size x = (tables - 1) P, are rounded once or twice, and
    their sum is x^2 / 2. As it is written, fp32 would be off by more than the value."""
    one = torch.logspace(-6, -0.01, 200, dtype=torch.float64)
    cosine = cosine_of(one, bits).float()
    exact = inclusion_probability_reference(cosine.double(), bits, tables)
    off = lambda found: (found / exact - 1).abs()  # noqa: E731
    found = inclusion_probability(cosine, bits, tables)
    assert found.dtype == torch.float32
    assert (off(found) <= 2**-21 / ((tables - 1) * one) + 5e-6).all()
    assert (found - exact).abs().max() < 1e-6
    assert off(inclusion_probability_reference(cosine, bits, tables)).max() > 1


def test_probability_by_hand() -> None:
    """At a right angle and one bit, coins: of three, at least two agree half the time."""
    right = torch.zeros(1)
    assert inclusion_probability(right, 1, 3).item() == pytest.approx(0.5, abs=1e-6)
    assert inclusion_probability(right, 1, 2).item() == pytest.approx(0.25, abs=1e-6)
    assert inclusion_probability(right, 10, 150).item() == pytest.approx(0.0097, abs=1e-4)
    ends = torch.tensor([1.0, 1.0001, -1.0, -1.0001])
    for tables in (2, 150):
        assert inclusion_probability(ends, 10, tables).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)
    for tables in (0, 1):
        assert inclusion_probability(ends, 10, tables).tolist() == pytest.approx([0] * 4, abs=1e-6)


def test_bits_and_tables_may_differ_by_row() -> None:
    cosine = torch.linspace(-1, 1, 12).view(2, 1, 6)
    bits, tables = torch.tensor([4, 10]), torch.tensor([20, 150])
    found = inclusion_probability(cosine, bits.view(-1, 1, 1), tables.view(-1, 1, 1))
    for row in range(2):
        expected = inclusion_probability(cosine[row], int(bits[row]), int(tables[row]))
        assert torch.allclose(found[row], expected, rtol=1e-5)
