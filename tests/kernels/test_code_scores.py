"""Scores of codes: against tokens that are decoded first; no bit depends on the room, or on who writes which block."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.code_scores import code_scores, code_scores_reference, code_scores_triton

pytestmark = MARKS
both = pytest.mark.parametrize(
    "op", [code_scores, partial(code_scores_triton, block=32, parts=2)], ids=["torch", "triton"]
)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def drawn(
    counts: list[int], room: int, segment: int, *, heads: int = 4, dim: int = 16, books: int = 3, width: int = 8
) -> dict[str, Any]:
    """What the tokens behind a row's `counts` have nobody may look at. Rows lie in wider ones, as a state keeps
    them."""
    random, groups, most = torch.Generator().manual_seed(dim), len(counts), max(counts)
    codes = torch.full((groups, room + 5, books), 255, dtype=torch.uint8)
    codes[:, :most] = torch.randint(0, 256, (groups, most, books), generator=random).to(torch.uint8)
    segments = -(-most // segment)
    anchors = torch.full((groups, -(-room // segment) + 1, dim), torch.nan, dtype=torch.bfloat16)
    anchors[:, :segments] = torch.randn(groups, segments, dim, generator=random).bfloat16()
    for row, count in enumerate(counts):
        anchors[row, -(-count // segment) :] = torch.nan
    given = {
        "q": torch.randn(groups, heads, dim, generator=random),
        "basis": torch.randn(groups, books * width, dim, generator=random) / 4,
        "codebooks": torch.randn(groups, books, width, 256, generator=random),
        "codes": codes, "anchors": anchors, "counts": torch.tensor(counts),
    }  # fmt: skip
    moved = {name: tensor.to(DEVICE) for name, tensor in given.items()}
    return moved | {"codes": moved["codes"][:, :room], "segment": segment}


@both
@pytest.mark.parametrize(
    ("counts", "room", "segment", "shape"),
    [
        ([100, 77], 100, 16, {}),
        ([33, 1], 70, 64, {"heads": 3, "dim": 20, "books": 1, "width": 3}),
        ([64, 0], 64, 32, {"heads": 1, "books": 5, "width": 1}),
        ([0], 0, 32, {"heads": 2}),
    ],
    ids=["whole and cut segments", "odd shapes", "one head, and nothing", "no room"],
)
def test_against_decoded_tokens(op: Any, counts: list[int], room: int, segment: int, shape: dict[str, int]) -> None:
    given = drawn(counts, room, segment, **shape)
    found, expected = op(**given), code_scores_reference(**given)
    assert (found.shape, found.dtype) == ((len(counts), room), torch.float32)
    for row, count in enumerate(counts):
        assert_close("scores", found[row, :count], expected[row, :count])
        assert not count or torch.isclose(expected[row, :count].sum(), torch.ones((), device=DEVICE))


@both
def test_no_bit_depends_on_the_room(op: Any) -> None:
    """Nor on whether there is one length for all rows."""
    expected = op(**drawn([90, 90], 90, 16))
    for room in (91, 144):
        given = drawn([90, 90], room, 16)
        given["counts"] = torch.tensor([90], dtype=torch.int64, device=DEVICE).expand(2)
        assert torch.equal(op(**given)[:, :90], expected[:, :90])


def test_no_bit_depends_on_who_writes_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of blocks are joined in several steps here."""
    monkeypatch.setattr("stratakv.kernels.group_softmax._JOINED", 8)
    given = drawn([90], 90, 16)
    one, three = (code_scores_triton(**given, block=16, parts=parts) for parts in (1, 3))
    assert torch.equal(one, three)
    assert_close("scores", one, code_scores_reference(**given))


def test_each_query_head_has_one_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that hears everything from far away."""
    given = drawn([40], 40, 16)
    given["q"][0, 0] *= 50
    assert_close("scores", code_scores(**given), code_scores_reference(**given))
    assert_close("scores", code_scores_triton(**given, block=32), code_scores_reference(**given))


def turned(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("name", ["basis", "codebooks"])
def test_what_lies_otherwise_is_refused(name: str) -> None:
    given = drawn([40], 40, 16)
    with pytest.raises(ValueError, match="basis and codebooks are contiguous"):
        code_scores(**given | {name: turned(given[name])})
