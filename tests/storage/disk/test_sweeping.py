"""Room is made by what was used longest ago, of it by states first: everything can do without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kv_pages import LARGE, disk_tier, text

from stratakv.storage import DiskTier, page_key

OLD, NEW = text(LARGE, 3, seed=1).chains, text(LARGE, 3, seed=2).chains
STATE, PAGE = bytes(100_000), bytes(10_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    """Two prompts of three pages in two layers, with a state of several pieces at each page's end."""
    disk = disk_tier(tmp_path)
    for chains in (OLD, NEW):
        disk.used([])
        disk.write_pages([(page_key(layer, chain), PAGE) for chain in chains for layer in range(2)])
        for chain in chains:
            disk.put_state(chain, STATE)
    yield disk
    disk.check_integrity()
    disk.close()


def states(disk: DiskTier) -> list[bytes]:
    return [chain for chain in (*OLD, *NEW) if disk.get_state(chain) is not None]


def pages(disk: DiskTier) -> list[bytes]:
    return [chain for chain in (*OLD, *NEW) if disk.contains(page_key(1, chain))]


def test_of_what_was_used_longest_ago_states_go_before_pages(disk: DiskTier) -> None:
    """A state counts with all of its pieces, so that no more go than is asked for."""
    everything = [*OLD, *NEW]
    for num_bytes, left, kept in (
        (100_000, everything[:2] + NEW, everything),
        (110_000, NEW, everything),
        (19_000, NEW, [*OLD[:2], *NEW]),
        (50_000, NEW[:2], NEW),
    ):
        assert disk.sweep(lambda key: False, num_bytes)
        assert (states(disk), pages(disk)) == (left, kept)


def test_states_of_what_is_needed_make_room_but_are_no_rubbish(disk: DiskTier) -> None:
    assert disk.sweep(lambda key: key[-16:] in OLD) == 9
    assert states(disk) == pages(disk) == OLD
    assert disk.sweep(lambda key: key[-16:] in OLD, 150_000) == 2
    assert (states(disk), pages(disk)) == (OLD[:1], OLD)
    assert disk.num_leading(OLD, lambda chain: [page_key(0, chain)]) == 3, "in use again, as before"
    assert disk.sweep(lambda key: False) == 7
