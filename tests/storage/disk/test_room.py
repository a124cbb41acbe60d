"""What records take is what LMDB's file grows by."""

from __future__ import annotations

from pathlib import Path

import pytest
from kv_pages import SMALL, disk_tier, text

from stratakv.storage import page_key
from stratakv.storage.disk.room import stored_bytes


@pytest.mark.parametrize("size", [600, 1286, 1926, 2200, 4060, 4090, 8000, 21_636])
def test_records_take_what_is_said(tmp_path: Path, size: int) -> None:
    disk, chains = disk_tier(tmp_path / "s"), text(SMALL, 320).chains
    before = disk.used_bytes
    for start in range(0, 320, 64):
        disk.write_pages([(page_key(0, chain), bytes(size)) for chain in chains[start : start + 64]])
    used = (disk.used_bytes - before) / 320
    disk.close()
    assert 0.8 * stored_bytes(size) < used < 1.02 * stored_bytes(size)
