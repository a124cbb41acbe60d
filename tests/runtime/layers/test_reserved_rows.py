"""Room in the pool: rows of slots that nobody else has, an entry's sides apart."""

from __future__ import annotations

import numpy as np
import pytest
from kv_pages import SMALL, store_on

from stratakv.runtime.layers.reserved_rows import ReservedRows


@pytest.mark.parametrize(("unit", "sides", "entries"), [(1, 2, 9), (2, 1, 6), (4, 2, 1)])
def test_rows_lie_in_the_slots_and_none_twice(unit: int, sides: int, entries: int) -> None:
    store = store_on(None, SMALL, host=8, gpu=16)
    rows = ReservedRows.reserve(store, 0, unit, sides, entries)
    assert rows is not None
    assert rows.num_entries >= entries
    assert rows.row_of.shape == (sides, SMALL.num_heads * rows.num_entries)
    assert len(np.unique(rows.row_of)) == rows.row_of.size
    assert set(rows.row_of.reshape(-1) // rows.parts) <= set(rows.slots)
    pages = rows.data.view(16, SMALL.num_heads, sides, -1, unit * SMALL.head_dim)  # with fewer sides, of more tokens
    for head in range(SMALL.num_heads):
        for side in range(sides):
            found = rows.row_of.reshape(sides, SMALL.num_heads, -1)[side, head]
            assert [rows.data[row].data_ptr() for row in found] == [
                pages[slot, head, side, place].data_ptr() for slot in rows.slots for place in range(pages.shape[3])
            ]
    assert rows.data.shape[1] == unit * SMALL.head_dim
    assert rows.entry_bytes == sides * rows.data[0].nbytes
    rows.close()
    assert store._residency.reserved == {0: 0}
    store.close()
