"""The mean of the heads' softmax over what exists: against the formula, and no bit depends on the room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels import group_softmax as module
from stratakv.kernels.group_softmax import group_softmax, group_softmax_reference, group_softmax_triton
from stratakv.kernels.topk_pages import group_scores

pytestmark = MARKS
both = pytest.mark.parametrize("op", [group_softmax, group_softmax_triton], ids=["torch", "triton"])


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int) -> Tensor:
    return (10 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)


@both
@pytest.mark.parametrize("logs", [False, True], ids=["shares", "logs"])
@pytest.mark.parametrize(("heads", "total"), [(1, 1), (3, 1023), (4, 2100), (2, 0)])
def test_against_the_formula(op: Any, heads: int, total: int, logs: bool) -> None:
    scores, counts = normal(2, heads, total), torch.tensor([total, (total + 1) // 2], device=DEVICE)
    found, expected = (of(scores, counts, logs=logs) for of in (op, group_softmax_reference))
    for row, count in enumerate(counts.tolist()):
        assert_close("scores", found[row, :count], expected[row, :count])
        if not logs and count:
            assert_close("scores", found[row, :count], group_scores(scores[row : row + 1, :, :count])[0])


@both
@pytest.mark.parametrize("logs", [False, True], ids=["shares", "logs"])
def test_no_bit_depends_on_the_room(op: Any, logs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are small here, so that the sums of blocks are joined in several steps."""
    monkeypatch.setattr(module, "_BLOCK", 64)
    monkeypatch.setattr(module, "_JOINED", 8)
    scores, counts = normal(2, 7, 159), torch.tensor([159, 155], device=DEVICE)
    scores[0, 0] -= 200  # a head that hears all of it from far away
    expected = op(scores, counts, logs=logs)
    for room in (160, 304):
        wider = torch.full((2, 7, room), float("nan"), device=DEVICE)
        wider[:, :, :159] = scores
        wider[1, :, 155:] = float("inf")
        found = op(wider, counts, logs=logs)
        for row, count in enumerate(counts.tolist()):
            assert torch.equal(found[row, :count], expected[row, :count])
    assert torch.equal(op(wider, counts[1:].expand(2), logs=logs)[1, :155], expected[1, :155])


@both
def test_logarithms_tell_apart_what_shares_do_not(op: Any) -> None:
    scores = torch.tensor([[[0.0, -200.0, -300.0]]], device=DEVICE)
    counts = torch.tensor([3], device=DEVICE)
    assert op(scores, counts).tolist() == [[1.0, 0.0, 0.0]]
    assert op(scores, counts, logs=True).tolist() == [[0.0, -200.0, -300.0]]
