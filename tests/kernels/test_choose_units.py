"""Choosing units in rows of which only the device knows the lengths: one unit at a time, in whole tensors, and by
Triton."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, isnan, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from triton_device import DEVICE, MARKS

from stratakv.kernels import choose_units as module
from stratakv.kernels.choose_units import choose_units, choose_units_reference, choose_units_triton
from stratakv.kernels.topk_pages import topk_pages

pytestmark = MARKS
KERNELS = [choose_units_reference, partial(choose_units_triton, splits=2)]
NAMES = ["reference", "triton"]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was never written cannot pass for a result."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(-7))


def plain(scores: list[float], wanted: int, most: int, sink: int, local: int) -> list[int]:
    """The rule for one row, by sorting."""

    def rank(unit: int) -> tuple[float, ...]:
        if unit < sink or unit >= len(scores) - local:
            return 0, 0, unit
        return (2, 0, unit) if isnan(scores[unit]) else (1, -scores[unit], unit)

    return sorted(sorted(range(len(scores)), key=rank)[: min(wanted, most)])


def check(
    choose: Any, scores: Tensor, totals: list[int], wanted: list[int], *, most: int, sink: int = 0, local: int = 0
) -> None:
    of = (torch.tensor(numbers, device=DEVICE) for numbers in (totals, wanted))
    ids, counts = choose(scores.to(DEVICE), *of, most=most, sink=sink, local=local)
    assert (ids.dtype, counts.dtype, ids.shape) == (torch.int64, torch.int64, (len(totals), most))
    expected = [
        plain(row[:total], some, most, sink, local)
        for row, total, some in zip(scores.tolist(), totals, wanted, strict=True)
    ]
    assert counts.tolist() == [len(row) for row in expected]
    for row, found in zip(expected, ids.tolist(), strict=True):
        assert found == row + [0] * (most - len(row))


def drawn(rows: int, room: int) -> Tensor:
    return torch.randn(rows, room, generator=torch.Generator().manual_seed(room))


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "of both signs": lambda x: x,
    "near each other": lambda x: 1 + x.mul(4).round() * 2**-23,
    "equal": torch.ones_like,
    "softmaxes": lambda x: x.mul(9).softmax(-1),
    "zeros of both signs": lambda x: x.sign() * 0,
    "no numbers": lambda x: torch.full_like(x, nan),
    "some no numbers": lambda x: x.masked_fill(x > -1, nan),
    "infinite": lambda x: torch.where(x > 1, inf, torch.where(x < 1.5, -inf, x)).masked_fill(x.abs() < 0.1, nan),
    "denormal": lambda x: x * 1e-40,
}


@pytest.mark.parametrize("choose", [choose_units_reference, partial(choose_units_triton, splits=1)], ids=NAMES)
def test_each_kind_of_scores(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 64 and a part of one."""
    monkeypatch.setattr(module, "_BLOCK", 64)
    scores = torch.stack([kind(row) for kind, row in zip(ROWS.values(), drawn(len(ROWS), 75), strict=True)])
    check(choose, scores, [75] * len(ROWS), [21] * len(ROWS), most=21, sink=2, local=3)


@pytest.mark.parametrize("choose", KERNELS, ids=NAMES)
def test_each_row_has_a_length_and_a_share(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, all, more than all, more than there is room for in the ids, and whatever lies behind a row's units."""
    monkeypatch.setattr(module, "_BLOCK", 16)
    totals, wanted = [0, 1, 33, 33, 40, 70, 75], [9, 9, 33, 6, 0, 19, 64]
    scores = drawn(len(totals), 75).round(decimals=1)
    for row, total in enumerate(totals):
        scores[row, total:] = (nan, inf, 99.0)[row % 3]
    check(choose, scores, totals, wanted, most=19, sink=1, local=2)


@pytest.mark.parametrize("choose", KERNELS, ids=NAMES)
@pytest.mark.parametrize(
    ("rows", "room", "wanted", "most", "sink", "local"),
    [
        (1, 5001, 700, 700, 4, 32),
        (1, 37, 0, 8, 0, 0),
        (1, 9, 6, 6, 3, 3),
        (1, 9, 4, 4, 3, 3),
        (1, 9, 12, 20, 1, 1),
        (1, 0, 5, 5, 1, 1),
        (1, 9, 3, 0, 0, 0),
        (0, 9, 3, 3, 1, 1),
    ],
    ids=["long", "none wanted", "all forced", "too many forced", "all", "no room", "no ids", "no rows"],
)
def test_edges(choose: Any, rows: int, room: int, wanted: int, most: int, sink: int, local: int) -> None:
    scores = drawn(rows, room).round(decimals=2)
    check(choose, scores, [room] * rows, [wanted] * rows, most=most, sink=sink, local=local)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    totals=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    room=st.integers(0, 5),
    sink=st.integers(0, 6),
    local=st.integers(0, 6),
    more=st.integers(0, 20),
)
def test_a_row_is_chosen_as_if_it_were_alone(totals: list[int], room: int, sink: int, local: int, more: int) -> None:
    """As `topk_pages` does where the host knows how many units there are."""
    count, width = sink + local + more, max(totals) + room
    scores = drawn(len(totals), width)
    scores[:, ::5] = -inf
    for row, total in enumerate(totals):
        scores[row, total:] = nan if row % 2 else inf
    ids, counts = choose_units(
        scores, torch.tensor(totals), torch.tensor([count] * len(totals)), most=count, sink=sink, local=local
    )
    for row, total in enumerate(totals):
        expected = list(range(total))
        if total > count:
            expected = topk_pages(scores[row : row + 1, :total], count, sink=sink, local=local)[0].tolist()
        assert ids[row, : counts[row]].tolist() == expected


@pytest.mark.parametrize("choose", KERNELS, ids=NAMES)
def test_nothing_depends_on_the_room(choose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether rows lie apart, scores side by side, or lengths once for all rows."""
    monkeypatch.setattr(module, "_BLOCK", 16)
    tight = drawn(2, 50).round(decimals=1).to(DEVICE)
    roomy = torch.full((131, 2), nan, device=DEVICE).T
    roomy[:, :50] = tight
    total, wanted = (torch.tensor([number], dtype=torch.int32, device=DEVICE).expand(2) for number in (50, 17))
    first, second = (choose(scores, total, wanted, most=20, sink=2, local=3) for scores in (tight, roomy))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_how_a_row_is_cut_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)
    scores, total, wanted = drawn(1, 90).round(decimals=1), torch.tensor([90]), torch.tensor([30])
    given_ = [t.to(DEVICE) for t in (scores, total, wanted)]
    expected = choose_units_reference(*given_, most=30, sink=1, local=1)[0]
    for splits in (1, 5):
        assert torch.equal(choose_units_triton(*given_, most=30, sink=1, local=1, splits=splits)[0], expected)


def test_nothing_of_a_choice_returns_to_the_host() -> None:
    """Tensors without numbers can be chosen from: no number is looked at, and no shape follows from one."""
    with FakeTensorMode() as fake:
        scores = fake.from_tensor(drawn(3, 70))
        lengths = fake.from_tensor(torch.tensor([70, 5, 0]))
        ids, counts = choose_units(scores, lengths, lengths, most=9, sink=1, local=2)
        assert (ids.shape, counts.shape) == ((3, 9), (3,))
        with pytest.raises(DynamicOutputShapeException):
            ids.nonzero()


def test_what_does_not_fit_is_refused() -> None:
    scores, two, three = drawn(2, 5), torch.tensor([5, 5]), torch.tensor([5, 5, 5])
    choose = partial(choose_units, most=3, sink=1, local=1)
    with pytest.raises(ValueError, match=r"scores: expected fp32 \[N, U\], got torch.float64"):
        choose(scores.double(), two, two)
    with pytest.raises(ValueError, match=r"totals: expected \[2\], got \[3\]"):
        choose(scores, three, two)
    with pytest.raises(ValueError, match=r"wanted: expected \[2\], got \[3\]"):
        choose(scores, two, three)
    with pytest.raises(ValueError, match="-1"):
        choose(scores, two, two, sink=-1)
