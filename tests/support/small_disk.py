"""A file system of a few megabytes, pretended: what is free on it, and how far files can grow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import no_file_may_grow


class Usage(NamedTuple):
    """As `shutil.disk_usage` returns it."""

    total: int
    used: int
    free: int


@dataclass
class SmallDisk:
    """Holds the store, and `foreign` bytes of others."""

    store: Path
    size: int
    foreign: int = 0

    def usage(self, _: Path) -> Usage:
        used = taken(self.store) + self.foreign
        return Usage(self.size, used, max(0, self.size - used))

    @contextmanager
    def as_full_as_it_is(self) -> Iterator[None]:
        """Writes fail once a file is longer than the longest is now by what is free."""
        longest = max((path.stat().st_size for path in self.store.rglob("*") if path.is_file()), default=0)
        with no_file_may_grow(max(longest, 1 << 16) + self.usage(self.store).free):
            yield


def small_disk(store: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    """What the program is told of every file system until the test ends."""
    found = SmallDisk(store, size)
    monkeypatch.setattr("stratakv.runtime.engine.machine_caps.shutil.disk_usage", found.usage)
    return found


def taken(store: Path) -> int:
    """Bytes of all files in the store, as they say themselves."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
