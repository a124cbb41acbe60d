"""Free slots: each is handed out once, and a layer's lie together while there is room."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.storage.memory.free_slots import FreeSlots


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 30),
    regions=st.integers(1, 5),
    ops=st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 12)), max_size=25),
)
def test_every_slot_is_free_or_taken(count: int, regions: int, ops: list[tuple[bool, int, int]]) -> None:
    free, taken = FreeSlots(count, regions), list[int]()
    for is_taking, layer, some in ops:
        if is_taking:
            found = free.take(some, layer)
            assert len(found) == min(some, count - len(taken)), "what there is, is given"
            taken += found.tolist()
        else:
            free.give(np.array(taken[:some], dtype=np.int64))
            taken = taken[some:]
        assert len(set(taken)) == len(taken)
        assert len(free) == count - len(taken)
        free.check_integrity()


def test_layers_lie_apart_until_one_is_full() -> None:
    free = FreeSlots(40, 4)
    of = {layer: free.take(6, layer).tolist() for layer in (3, 7, 11, 15)}
    assert [slots[0] // 10 for slots in of.values()] == [0, 1, 2, 3], "in the order in which they come"
    assert all(slots == list(range(slots[0], slots[0] + 6)) for slots in of.values())
    free.give(np.array(of[11][2:4]))
    assert free.take(2, 11).tolist() == of[11][3:1:-1], "what was used before comes first"
    more = free.take(6, 3)
    assert more[:4].tolist() == [6, 7, 8, 9]
    assert {int(slot) // 10 for slot in more[4:]} == {1}, "then where there is most room"
    assert len(free.take(99, 0)) == 40 - 24 - 6


def test_one_region_is_in_order() -> None:
    free = FreeSlots(5)
    assert free.take(3, 1).tolist() == [0, 1, 2]
    free.give(np.array([1, 0]))
    assert free.take(9, 2).tolist() == [0, 1, 3, 4]


def test_a_slot_that_is_given_twice_is_found() -> None:
    free = FreeSlots(4, 2)
    slots = free.take(3, 0)
    free.give(slots)
    free.give(slots[:1])
    with pytest.raises(AssertionError, match="a slot is twice in the free list"):
        free.check_integrity()
