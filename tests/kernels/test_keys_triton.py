"""The Triton kernels that summarise, rebuild and hash keys against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.landmarks import landmarks_reference, landmarks_triton
from stratakv.kernels.low_rank import rebuild, rebuild_keys, rebuild_keys_reference, rebuild_keys_triton
from stratakv.kernels.rotary import rotated
from stratakv.kernels.simhash import random_planes, simhash_reference, simhash_triton

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


# Landmarks


@pytest.mark.parametrize(
    ("count", "chunk", "dim", "dtype"),
    [
        (0, 8, 64, torch.float32), (1, 1, 80, torch.bfloat16), (37, 3, 96, torch.float16), (33, 8, 128, torch.float32),
        (9, 4, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_landmarks(count: int, chunk: int, dim: int, dtype: torch.dtype) -> None:
    keys = normal(2, count * chunk + 1, dim, dtype=dtype)[:, 1:]
    for found, expected in zip(landmarks_triton(keys, chunk), landmarks_reference(keys, chunk), strict=True):
        assert_close("landmarks", found, expected)


def test_landmarks_of_strided_and_zero_keys() -> None:
    keys = normal(2, 64, 12).transpose(1, 2)
    keys[:, :4] = 0
    for found, expected in zip(landmarks_triton(keys, 4), landmarks_reference(keys, 4), strict=True):
        assert_close("landmarks", found, expected)
    assert landmarks_triton(keys, 4)[1][:, 0].eq(0).all()


# Low rank

Op = Any
OPS = [rebuild_keys_reference, rebuild_keys_triton]


def drawn(rank: int, dim: int, dtype: torch.dtype, count: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 90, (2, count), generator=torch.Generator().manual_seed(rank)).to(DEVICE)
    return normal(90, rank, dtype=dtype), normal(2, dim, rank, seed=1), ids


@pytest.mark.parametrize(
    ("rank", "dim", "width", "dtype"),
    [
        (20, 64, 32, torch.float16), (32, 80, 40, torch.float32), (33, 96, 5, torch.float16),
        (160, 128, 64, torch.float16), (7, 512, 32, torch.float32),
    ],
)  # fmt: skip
def test_rebuilt_keys(rank: int, dim: int, width: int, dtype: torch.dtype) -> None:
    of = drawn(rank, dim, dtype)
    assert_close("keys", rebuild_keys_triton(*of), rebuild_keys_reference(*of))
    angle = normal(90, width, seed=2)
    turn = angle.cos(), angle.sin()
    assert_close("keys", rebuild_keys_triton(*of, *turn), rebuild_keys_reference(*of, *turn))


@pytest.mark.parametrize("op", OPS)
def test_rebuilding_is_gathering_multiplying_and_rotating(op: Op) -> None:
    factors, basis, ids = drawn(16, 64, torch.float16)
    angle = normal(90, 24, seed=2)
    found = op(factors, basis, ids, angle.cos(), angle.sin())
    for group in range(2):
        each = torch.stack([basis[group] @ factors[i].float() for i in ids[group].tolist()])
        assert_close("keys", found[group], rotated(each, angle[ids[group]].cos(), angle[ids[group]].sin()))
    assert_close("keys", op(factors, basis, ids), rebuild(factors[ids], basis))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("counts", [[0, 70], [65, 1]])
def test_ragged_rows_are_rebuilt_up_to_their_counts(op: Op, counts: list[int]) -> None:
    factors, basis, ids = drawn(16, 64, torch.float16)
    angle = normal(90, 24, seed=2)
    expected = rebuild_keys_reference(factors, basis, ids, angle.cos(), angle.sin())
    for row, count in enumerate(counts):
        ids[row, count:] = 10**9
        expected[row, count:] = 0
    found = op(factors, basis, ids, angle.cos(), angle.sin(), torch.tensor(counts, device=DEVICE))
    assert_close("keys", found, expected)


def test_no_key_is_rebuilt() -> None:
    assert rebuild_keys_triton(*drawn(16, 64, torch.float16, count=0)).shape == (2, 0, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": torch.zeros(90, 15)}, r"\[90, 15\].*expected \[T, r\]"),
        ({"cos": torch.zeros(90, 32)}, "together"),
        ({"cos": torch.zeros(90, 33), "sin": torch.zeros(90, 33)}, r"\[90, 33\].*2W at most 64"),
        ({"factors": torch.zeros(16, 90).T}, "factors: expected contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor], message: str) -> None:
    factors, basis, ids = drawn(16, 64, torch.float32)
    with pytest.raises(ValueError, match=message):
        rebuild_keys(**{"factors": factors, "basis": basis, "ids": ids, **changes})


# Hashes


@pytest.mark.parametrize(
    ("count", "bits", "tables", "dim", "dtype"),
    [
        (0, 10, 33, 64, torch.float32), (1, 10, 33, 64, torch.float16), (67, 10, 33, 64, torch.float32),
        (67, 15, 3, 80, torch.bfloat16), (67, 1, 70, 96, torch.float16), (67, 2, 5, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_simhash(count: int, bits: int, tables: int, dim: int, dtype: torch.dtype) -> None:
    """Every bit of every code; zeros lie on every plane and beyond none."""
    planes, x = random_planes(dim, bits, tables, seed=dim).to(DEVICE), normal(2, count, dim, dtype=dtype)
    x[:, 7:9] = 0
    codes = simhash_triton(x, planes)
    assert codes.dtype == torch.int16
    assert torch.equal(codes, simhash_reference(x, planes))


def test_simhash_of_any_leading_axes() -> None:
    planes, x = random_planes(64, 8, 20, seed=0).to(DEVICE), normal(2, 3, 5, 64)
    assert torch.equal(simhash_triton(x, planes), simhash_reference(x, planes))
    assert torch.equal(simhash_triton(x[1, 2], planes), simhash_reference(x, planes)[1, 2])
