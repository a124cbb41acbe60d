"""Names and columns of pages."""

from __future__ import annotations

import numpy as np

from stratakv.storage.memory.page_table import NO_SLOT, PageTable

TOKENS = np.arange(4, dtype=np.uint32)


def chain(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_page_is_found_by_its_name_and_tokens() -> None:
    table = PageTable(4)
    pid = table.add(2, chain(1), TOKENS)
    assert (table.refs[pid], table.layer[pid], table.host_slot[pid]) == (1, 2, NO_SLOT)
    assert table.share(table.keys[pid], TOKENS) == pid
    assert table.refs[pid] == 2
    assert table.share(table.keys[pid], TOKENS + 1) is None
    assert table.share(b"another", TOKENS) is None
    assert table.refs[pid] == 2


def test_ids_are_given_out_again_with_nothing_of_the_page_before() -> None:
    table = PageTable(4)
    first, other = table.add(0, chain(1), TOKENS), table.add(0, chain(2), TOKENS)
    table.host_slot[first], table.stored[first], table.ahead[first], table.kept_out[first] = 7, True, True, True
    name = table.keys[first]
    table.remove(first)
    assert table.live().tolist() == [other]
    assert table.share(name, TOKENS) is None
    assert table.add(1, chain(3), TOKENS) == first
    assert table.host_slot[first] == NO_SLOT
    assert not any(column[first] for column in (table.stored, table.ahead, table.kept_out))


def test_a_newer_page_keeps_its_name() -> None:
    table = PageTable(4)
    old, new = table.add(0, chain(1), TOKENS), table.add(0, chain(1), TOKENS)
    table.remove(old)
    assert table.share(table.keys[new], TOKENS) == new


def test_columns_grow() -> None:
    table = PageTable(4)
    pids = [table.add(0, chain(number), TOKENS + number) for number in range(2500)]
    assert pids == list(range(2500))
    assert (table.tokens[:2500, 0] == np.arange(2500)).all()
    table.host_slot[3], table.gpu_slot[2400] = 1, 0
    assert table.is_resident(np.array([2, 3, 2400])).tolist() == [False, True, True]
