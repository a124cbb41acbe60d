"""The Triton kernels that summarise and score pages, and scores of ragged rows, against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.box_scores import box_scores, box_scores_reference, box_scores_triton
from stratakv.kernels.codebook_scores import half_norms, nearest_codewords_reference, nearest_codewords_triton
from stratakv.kernels.page_bounds import (
    bound_scores,
    bound_scores_reference,
    bound_scores_triton,
    page_bounds_reference,
    page_bounds_triton,
)
from stratakv.kernels.pq_scores import pq_scores, pq_scores_reference, pq_scores_triton

pytestmark = MARKS
SHAPES = [
    (1, 64, torch.float32), (3, 80, torch.float16), (2, 96, torch.bfloat16), (4, 256, torch.float32),
    (16, 512, torch.bfloat16),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def finite(scores: Tensor) -> Tensor:
    return scores.nan_to_num(neginf=0.0)


# Bounds


@pytest.mark.parametrize(
    ("pages", "size", "dim", "dtype"),
    [
        (0, 16, 64, torch.float32), (1, 16, 80, torch.bfloat16), (5, 3, 96, torch.float16), (2, 40, 64, torch.float32),
        (3, 1, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_page_bounds(pages: int, size: int, dim: int, dtype: torch.dtype) -> None:
    keys = normal(3, pages * size + 1, dim, dtype=dtype)[:, 1:]  # not aligned
    found = page_bounds_triton(keys, size)
    assert found.dtype == dtype
    assert torch.equal(found, page_bounds_reference(keys, size))


def test_page_bounds_of_strided_keys() -> None:
    keys = normal(2, 64, 12).transpose(1, 2)
    assert torch.equal(page_bounds_triton(keys, 4), page_bounds_reference(keys, 4))


@pytest.mark.parametrize(
    ("pages", "heads", "dim", "dtype"),
    [(0, *SHAPES[0]), (1, *SHAPES[1]), *((67, *shape) for shape in SHAPES[:4]), (3, *SHAPES[4])],
)
def test_scores(pages: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    boxes = page_bounds_reference(normal(2, pages * 4, dim, dtype=dtype), 4)
    q = normal(2, heads, dim, dtype=dtype, seed=1)
    assert_close("scores", bound_scores_triton(q, boxes), bound_scores_reference(q, boxes))
    for found, expected in zip(box_scores_triton(q, boxes), box_scores_reference(q, boxes), strict=True):
        assert_close("scores", found, expected)


def test_bounds_do_not_cross() -> None:
    """Where all keys of a box are equal, rounding could let them."""
    keys = (normal(2, 90, 80) + 50).to(torch.bfloat16)
    hi, lo = box_scores_triton(normal(2, 4, 80), page_bounds_triton(keys, 1))
    assert torch.equal(hi, lo)


@pytest.mark.parametrize("turned", [False, True])
def test_scores_of_a_part_of_a_longer_table(turned: bool) -> None:
    """As indexes hold them: the rows of a buffer that has room for more, which was never written."""
    buffer = torch.full((2, 128, 50) if turned else (2, 50, 128), float("nan"), device=DEVICE)
    buffer = buffer.transpose(1, 2) if turned else buffer
    buffer[:, :33] = page_bounds_reference(normal(2, 33 * 2, 64), 2)
    q = normal(64, 3, 2).permute(2, 1, 0)
    expected = bound_scores_reference(q, buffer[:, :33].clone())
    assert_close("scores", bound_scores_triton(q, buffer[:, :33]), expected)


@pytest.mark.parametrize("op", [bound_scores, bound_scores_reference, bound_scores_triton])
def test_ragged_rows(op: Any) -> None:
    """As many pages as each row has; what lies beyond them does not matter."""
    boxes, q = page_bounds_reference(normal(3, 80, 64), 2), normal(3, 2, 64, seed=1)
    counts = torch.tensor([40, 0, 17], device=DEVICE)
    found = op(q, boxes, counts)
    for row, count in enumerate(counts.tolist()):
        expected = bound_scores_reference(q[row : row + 1], boxes[row : row + 1, :count])
        assert_close("scores", found[row : row + 1, :, :count], expected)
        assert found[row, :, count:].eq(-torch.inf).all()
    assert torch.equal(op(q, boxes, counts[2:].expand(3))[2], found[2]), "one count for all rows"


@pytest.mark.parametrize("op", [box_scores, box_scores_reference, box_scores_triton])
def test_ragged_boxes(op: Any) -> None:
    boxes, q = page_bounds_reference(normal(2, 80, 64), 2), normal(2, 2, 64, seed=1)
    for found, expected in zip(
        op(q, boxes, torch.tensor([3, 40], device=DEVICE)), box_scores_reference(q, boxes), strict=True
    ):
        assert found[0, :, 3:].eq(-torch.inf).all()
        assert_close("scores", found[0, :, :3], expected[0, :, :3])
        assert_close("scores", found[1], expected[1])


# Product quantisation


def coded(tokens: int, parts: int, cells: int = 256) -> Tensor:
    codes = torch.randint(0, cells, (2, tokens, parts), generator=torch.Generator().manual_seed(parts))
    return codes.to(DEVICE, torch.uint8)


@pytest.mark.parametrize(
    ("tokens", "heads", "parts", "cells"),
    [(0, 1, 6, 256), (1, 4, 1, 16), (1100, 4, 1, 16), (1100, 3, 6, 256), (1100, 16, 16, 200)],
)
def test_pq_scores(tokens: int, heads: int, parts: int, cells: int) -> None:
    tables, codes = normal(2, parts, heads, cells).transpose(1, 2), coded(tokens, parts, cells)
    assert_close("scores", pq_scores_triton(tables, codes), pq_scores_reference(tables, codes))


def test_pq_scores_of_a_part_of_a_longer_table() -> None:
    tables, codes = normal(2, 3, 6, 256), coded(90, 6)
    assert_close("scores", pq_scores_triton(tables, codes[:, :33]), pq_scores_reference(tables, codes[:, :33].clone()))


@pytest.mark.parametrize("op", [pq_scores, pq_scores_reference, pq_scores_triton])
def test_ragged_tokens(op: Any) -> None:
    tables, codes = normal(2, 3, 6, 256), coded(90, 6)
    found, expected = op(tables, codes, torch.tensor([17, 90], device=DEVICE)), pq_scores_reference(tables, codes)
    assert found[0, :, 17:].eq(-torch.inf).all()
    assert_close("scores", found[0, :, :17], expected[0, :, :17])
    assert_close("scores", found[1], expected[1])


# Codebooks


@pytest.mark.parametrize(
    ("tokens", "words", "dim", "dtype"),
    [
        (0, 9, 64, torch.float32), (1, 1, 16, torch.bfloat16), (70, 37, 80, torch.float16),
        (65, 130, 128, torch.float32), (16, 40, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_nearest_codewords(tokens: int, words: int, dim: int, dtype: torch.dtype) -> None:
    keys, codewords = normal(2, tokens, dim, dtype=dtype), normal(2, words, dim, dtype=dtype, seed=1)
    queries = normal(2, 3 * dim, dim, seed=2) * torch.logspace(0, -1, dim, device=DEVICE)
    metric = queries.transpose(1, 2) @ queries
    found = nearest_codewords_triton(keys, metric, codewords, half_norms(metric, codewords))
    assert torch.equal(found, nearest_codewords_reference(keys, metric, codewords))


def test_of_equal_codewords_the_first_is_taken() -> None:
    codewords = torch.ones(1, 100, 16, device=DEVICE)
    codewords[:, :40] = -5
    metric = torch.eye(16, device=DEVICE).unsqueeze(0)
    found = nearest_codewords_triton(
        torch.ones(1, 5, 16, device=DEVICE), metric, codewords, half_norms(metric, codewords)
    )
    assert found.eq(40).all()
