"""Experts against PyTorch: which they are, their shares, and the sums of what they make; each with the bits it has
alone. Numbers are whole where sums must be exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_rows import Buffer, bits, nothing_yet, work
from torch import Tensor

from stratakv.kernels.compiled import block_products, experts, products
from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.blocks import rows

COLUMNS, ROWS, CHUNK, COUNT = 64, 11, 4, 5
KINDS = {r.F32: torch.float32, r.BF16: torch.bfloat16, r.I8: torch.int8}


def routed(
    logits: Tensor, chosen: int, *, renormalises: bool = True, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Numbers int64 and shares `[B, K]` of logits `[B, E]`."""
    ids, shares = torch.full((len(logits), chosen), -1), nothing_yet(len(logits), chosen)
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = experts.route.address, len(logits), 1
    row[[r.R_EXPERTS, r.R_CHOSEN, r.R_RENORMALISES]] = logits.shape[1], chosen, renormalises
    row[[r.R_LOGITS, r.R_IDS, r.R_SHARES]] = logits.data_ptr(), ids.data_ptr(), shares.data_ptr()
    row[r.R_FACTORS] = 0 if factors is None else factors.data_ptr()
    work(row)
    return ids, shares


@pytest.mark.parametrize("renormalises", [False, True])
@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (6, 1), (6, 6), (37, 8)])
def test_routes(count: int, chosen: int, renormalises: bool) -> None:
    logits = 3 * torch.randn(4, count, generator=torch.Generator().manual_seed(count))
    ids, shares = routed(logits, chosen, renormalises=renormalises)
    expected, numbers = F.softmax(logits, -1).topk(chosen)
    assert torch.equal(ids, numbers)
    torch.testing.assert_close(shares, expected / expected.sum(-1, keepdim=True) if renormalises else expected)
    factors = torch.rand(count)
    _, multiplied = routed(logits, chosen, renormalises=renormalises, factors=factors)
    torch.testing.assert_close(multiplied, shares * factors[ids])


def test_two_vectors_are_normed_and_added() -> None:
    x, d, of_x, of_d, y = (torch.randn(*shape) for shape in ((3, 21), (3, 21), (21,), (21,), (3, 21)))
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER, r.P_COLUMNS, r.P_EPS]] = experts.both.address, 3, 1, 21, bits(1e-5)
    row[[r.P_A, r.P_D, r.P_Y]] = x.data_ptr(), d.data_ptr(), y.data_ptr()
    row[[r.P_NORM, r.P_NORM_D]] = of_x.data_ptr(), of_d.data_ptr()
    work(row)
    torch.testing.assert_close(y, F.rms_norm(x, (21,), of_x, 1e-5) + F.rms_norm(d, (21,), of_d, 1e-5))


def test_of_equal_ones_the_first_and_no_number_last() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [torch.nan, -5.0, torch.nan, -torch.inf], [-1e30, 80.0, -90.0, 79.0]])
    ids, shares = routed(logits, 2)
    assert ids.tolist() == [[1, 2], [1, 0], [1, 3]]
    assert shares[0].tolist() == [0.5, 0.5]
    assert shares[2].sum() == pytest.approx(1)


BIASES = torch.arange(COUNT * ROWS, dtype=torch.float32).view(COUNT, ROWS)


def weights(kind: int) -> Tensor:
    draw = torch.Generator().manual_seed(kind)
    return torch.randint(-9, 10, (COUNT, ROWS, COLUMNS), generator=draw).to(KINDS[kind])


def expert_row(weight: Tensor, kind: int, ids: Tensor, vectors: int) -> tuple[np.ndarray, np.ndarray]:
    """All but what x is, what is done and where it goes; and the addresses of weights, and of BIASES."""
    there = np.array([[one.data_ptr() for one in some] for some in (weight, BIASES)], dtype=np.int64)
    row = np.zeros(r.WIDTH, dtype=np.int64)
    form = block_products if kind == r.I8 else products
    row[[r.PREPARE, r.BARRIER, r.P_FACTOR]] = form.prepare.address, 1, bits(1)
    row[r.P_ROOM] = experts.vectors_bytes(vectors, COLUMNS)
    row[r.MEMORY] = row[r.P_ROOM] + 4 * CHUNK
    row[[r.P_BATCH, r.P_ROWS, r.P_COLUMNS, r.P_CHUNK]] = vectors, ROWS, COLUMNS, CHUNK
    row[[r.P_KIND, r.P_WEIGHT, r.P_IDS]] = kind, there[0].ctypes.data, ids.data_ptr()
    row[r.P_CHOSEN] = ids.shape[1]
    if kind == r.I8:
        row[r.P_CODE] = rows(kind, rounded=False).address
    return row, there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 4, 5])
def test_each_sequence_has_its_own(batch: int, kind: int) -> None:
    draw = torch.Generator().manual_seed(batch)
    weight, x = weights(kind), torch.randint(-9, 10, (batch, COLUMNS), generator=draw).float()
    ids, y = torch.randint(0, COUNT, (batch, 2), generator=draw), nothing_yet(batch, 2, ROWS + 3)
    row, there = expert_row(weight, kind, ids, batch)
    row[[r.OPERATION, r.ITEMS]] = experts.each.address, batch * 2 * -(-ROWS // CHUNK)
    row[[r.P_A, r.P_Y, r.P_STRIDE]] = x.data_ptr(), y.data_ptr(), ROWS + 3
    work(row)
    expected = torch.einsum("bkrc,bc->bkr", weight.float()[ids], x)
    assert torch.equal(y[..., :ROWS], expected)
    assert y[..., ROWS:].isnan().all()
    row[r.P_BIAS] = there[1].ctypes.data
    work(row)
    assert torch.equal(y[..., :ROWS], expected + BIASES[ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "chosen"), [(1, 1), (1, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("has_shared", [False, True])
def test_what_they_make_is_added_by_shares(has_shared: bool, batch: int, chosen: int, kind: int) -> None:
    """In as many bytes as are said to be needed."""
    draw = torch.Generator().manual_seed(batch)
    weight, x = weights(kind), torch.randint(-9, 10, (batch * chosen, COLUMNS), generator=draw).float()
    ids, y = torch.randint(0, COUNT, (batch, chosen), generator=draw), nothing_yet(batch, ROWS + 2)
    shares = 2.0 ** -torch.randint(0, 4, (batch, chosen), generator=draw).float()
    row, there = expert_row(weight, kind, ids, batch * chosen)
    row[[r.OPERATION, r.ITEMS]] = experts.together.address, -(-ROWS // CHUNK)
    row[[r.P_A, r.P_Y, r.P_STRIDE, r.P_SHARES]] = x.data_ptr(), y.data_ptr(), ROWS + 2, shares.data_ptr()
    row[r.P_BIAS] = there[1].ctypes.data
    shared, gate = torch.randint(-9, 10, (batch, ROWS), generator=draw).float(), 100.0 * (torch.arange(batch) - 0.5)
    row[[r.P_D, r.P_NORM_D]] = (shared.data_ptr(), gate.data_ptr()) if has_shared else 0
    scratch = Buffer(int(row[r.MEMORY]), np.uint8)
    form = block_products if kind == r.I8 else products
    form.prepare(row.ctypes.data, scratch.address)
    for item in (1, 2, 0):
        experts.together(row.ctypes.data, item, scratch.address)
    scratch.check()
    made = torch.einsum("bkrc,bkc->bkr", weight.float()[ids], x.view(batch, chosen, COLUMNS)) + BIASES[ids]
    expected = (made * shares[..., None]).sum(1) + (gate.sigmoid()[:, None] * shared if has_shared else 0)
    torch.testing.assert_close(y[:, :ROWS], expected, rtol=1e-6, atol=1e-6)
    assert y[:, ROWS:].isnan().all()
