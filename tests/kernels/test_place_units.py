"""Places for units: the reference and Triton against one head and one unit at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.place_units import (
    ABSENT,
    NEVER,
    Places,
    place_units,
    place_units_reference,
    place_units_triton,
)

pytestmark = MARKS
KERNELS = [place_units, place_units_reference, place_units_triton]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


class Plain:
    """The rule for one head, in lists."""

    def __init__(self, entries: int) -> None:
        self.units, self.uses, self.hand = [ABSENT] * entries, [NEVER] * entries, 0

    def place(self, ids: list[int], now: int) -> tuple[list[int], list[bool]]:
        held = [self.units.index(unit) if unit in self.units else None for unit in ids]
        for entry in held:
            if entry is not None:
                self.uses[entry] = now
        around = [(self.hand + i) % len(self.units) for i in range(len(self.units))]
        wanted = held.count(None)
        room = [entry for entry in around if self.uses[entry] < now - 1]
        if len(room) < wanted:
            room = [entry for entry in around if self.uses[entry] < now]
        room = room[:wanted]
        if room:
            self.hand = (room[-1] + 1) % len(self.units)
        lacking = [entry is None for entry in held]
        found = [room.pop(0) if entry is None else entry for entry in held]
        for unit, entry in zip(ids, found, strict=True):
            self.units[entry], self.uses[entry] = unit, now
        return found, lacking


def drawn(units: int, count: int, groups: int, random: torch.Generator) -> Tensor:
    return torch.stack([torch.randperm(units, generator=random)[:count].sort().values for _ in range(groups)])


@pytest.mark.parametrize("place", KERNELS)
@pytest.mark.parametrize(
    ("units", "entries", "counts"),
    [
        (40, 9, (4, 9, 1, 0, 9, 5)),
        (12, 12, (12, 3, 12)),
        (60, 30, (7, 8, 9, 10, 30, 2)),
        (3000, 2100, (1030, 1030, 1100)),
    ],
    ids=str,
)
def test_the_rule(place: Any, units: int, entries: int, counts: tuple[int, ...]) -> None:
    """Steps of several reads, some of which take all there is; tables lead to each other and back after each."""
    random, groups = torch.Generator().manual_seed(units), 2
    places = Places.empty(groups, units, entries, DEVICE)
    plain = [Plain(entries) for _ in range(groups)]
    for step, count in enumerate(counts):
        places.clock.add_(1)
        for part in (
            (drawn(units, count, groups, random),)
            if step % 2
            else drawn(units, count, groups, random).split(max(1, count // 2), 1)
        ):
            found, lacking = place(part.contiguous().to(DEVICE), places)
            expected = [one.place(ids, step + 1) for one, ids in zip(plain, part.tolist(), strict=True)]
            assert (found.dtype, lacking.dtype) == (torch.int32, torch.bool)
            assert list(zip(found.tolist(), lacking.tolist(), strict=True)) == expected
            assert places.unit_of[:, :-1].tolist() == [one.units for one in plain]
            assert places.last_use[:, :-1].tolist() == [one.uses for one in plain]
            assert places.hand.tolist() == [one.hand for one in plain]
            for entry_of, one in zip(places.entry_of[:, :-1].tolist(), plain, strict=True):
                assert {unit: entry for unit, entry in enumerate(entry_of) if entry != ABSENT} == {
                    unit: entry for entry, unit in enumerate(one.units) if unit != ABSENT
                }


@pytest.mark.parametrize("place", KERNELS)
def test_what_the_last_step_read_stays_while_there_is_room(place: Any) -> None:
    places = Places.empty(1, 20, 6, DEVICE)
    lacked = []
    for ids in ([0, 1], [2, 3], [4, 5], [6, 7], [4, 5], [6, 7, 8, 9, 10]):
        places.clock.add_(1)
        lacked.append(place(torch.tensor([ids], device=DEVICE), places)[1].tolist()[0])
    assert lacked[:4] == [[True, True]] * 4
    assert lacked[4] == [False, False]
    assert lacked[5] == [False, False, True, True, True], "where there is none, what it read goes"


@pytest.mark.parametrize("place", KERNELS)
def test_ids_that_do_not_count_change_nothing(place: Any) -> None:
    """Rows that count more or less, down to nothing, beside reads of those ids alone."""
    random, wide = torch.Generator().manual_seed(3), Places.empty(3, 50, 20, DEVICE)
    narrow = [Places.empty(1, 50, 20, DEVICE) for _ in range(3)]
    for counts in ([5, 0, 12], [12, 12, 12], [0, 0, 0], [3, 12, 7]):
        ids = drawn(50, 12, 3, random).to(DEVICE)
        for row, count in enumerate(counts):
            ids[row, count:] = 0  # as a choice of few leaves them
        for one in (wide, *narrow):
            one.clock.add_(1)
        found, lacking = place(ids, wide, torch.tensor(counts, device=DEVICE))
        for row, (one, count) in enumerate(zip(narrow, counts, strict=True)):
            alone = place(ids[row : row + 1, :count].contiguous(), one)
            assert torch.equal(found[row, :count], alone[0][0])
            assert torch.equal(lacking[row, :count], alone[1][0])
            assert not found[row, count:].any()
            assert not lacking[row, count:].any()
            for mine, its in zip(wide[:3], one[:3], strict=True):
                assert torch.equal(mine[row, :-1], its[0, :-1])
            assert wide.hand[row] == one.hand[0]


def test_what_does_not_fit_is_refused() -> None:
    places = Places.empty(2, 20, 6, DEVICE)
    with pytest.raises(ValueError, match="7 units of each head do not fit 6 entries"):
        place_units(torch.zeros(2, 7, dtype=torch.int64, device=DEVICE), places)
    with pytest.raises(ValueError, match="contiguous"):
        place_units(torch.zeros(4, 2, dtype=torch.int64, device=DEVICE).T, places)
