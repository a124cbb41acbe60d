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
every_kind = pytest.mark.parametrize("given", [{}, {"logs": True}, {"best": True}], ids=["shares", "logs", "best"])
both = pytest.mark.parametrize("op", [group_softmax, group_softmax_triton], ids=["torch", "triton"])


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int) -> Tensor:
    return (10 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))).to(DEVICE)


@both
@every_kind
@pytest.mark.parametrize(("heads", "total"), [(1, 1), (3, 1023), (4, 2100), (2, 0)])
def test_against_the_formula(op: Any, heads: int, total: int, given: dict[str, bool]) -> None:
    scores, counts = normal(2, heads, total), torch.tensor([total, (total + 1) // 2], device=DEVICE)
    found, expected = (of(scores, counts, **given) for of in (op, group_softmax_reference))
    for row, count in enumerate(counts.tolist()):
        assert_close("scores", found[row, :count], expected[row, :count])
        if not given and count:
            assert_close("scores", found[row, :count], group_scores(scores[row : row + 1, :, :count])[0])


@both
@every_kind
def test_no_bit_depends_on_the_room(op: Any, given: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are small here, so that the sums of blocks are joined in several steps."""
    monkeypatch.setattr(module, "_BLOCK", 64)
    monkeypatch.setattr(module, "_JOINED", 8)
    scores, counts = normal(2, 7, 159), torch.tensor([159, 155], device=DEVICE)
    scores[0, 0] -= 200  # a head that hears all of it from far away
    expected = op(scores, counts, **given)
    for room in (160, 304):
        wider = torch.full((2, 7, room), float("nan"), device=DEVICE)
        wider[:, :, :159] = scores
        wider[1, :, 155:] = float("inf")
        found = op(wider, counts, **given)
        for row, count in enumerate(counts.tolist()):
            assert torch.equal(found[row, :count], expected[row, :count])
    assert torch.equal(op(wider, counts[1:].expand(2), **given)[1, :155], expected[1, :155])


@both
def test_logarithms_tell_apart_what_shares_do_not(op: Any) -> None:
    scores = torch.tensor([[[0.0, -200.0, -300.0]]], device=DEVICE)
    counts = torch.tensor([3], device=DEVICE)
    assert op(scores, counts).tolist() == [[1.0, 0.0, 0.0]]
    for given in ({"logs": True}, {"best": True}):
        assert op(scores, counts, **given).tolist() == [[0.0, -200.0, -300.0]]


@both
def test_of_two_heads_the_better_share_counts(op: Any) -> None:
    """Also where a whole block of units is ruled out."""
    scores = torch.full((1, 2, 1026), torch.finfo(torch.float32).min, device=DEVICE)
    scores[0, :, 1024:] = torch.tensor([[0.0, 2.0], [5.0, 1.0]])
    found = op(scores, torch.tensor([1026], device=DEVICE), best=True)
    shares = torch.log_softmax(torch.tensor([[0.0, 2.0], [5.0, 1.0]]), -1).amax(0)
    assert_close("scores", found[0, 1024:].cpu(), shares)
    assert found[0, :1024].max() < -1e38
