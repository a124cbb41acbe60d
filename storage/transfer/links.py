"""Edges between tiers, and how long they were busy.

Every transfer passes through the link of its edge. Whoever measures may put another link in its place, one that makes
transfers take longer: `due` and `wait` are for that, since here all that was sent ahead is there once it is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from . import clock


@dataclass(slots=True)
class Transfer:
    """One transfer. Set `num_bytes` before the end of the `with` block."""

    num_bytes: int = 0


class Link:
    """One edge between two tiers, for transfers in one direction. Any thread may use it."""

    is_held: ClassVar[bool] = False
    """Whether transfers take longer than they would: then none may go past it."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Seconds that all transfers took together."""
        self._sum = threading.Lock()

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        """Everything moved inside the block is one transfer. Hold no lock around the block that others wait for."""
        transfer, started = Transfer(), clock.now()
        yield transfer
        if transfer.num_bytes:
            with self._sum:
                self.busy_s += clock.now() - started

    def sending(self) -> AbstractContextManager[Transfer]:
        """Like `moving`, for a transfer sent ahead: the block ends once the bytes are copied, however slow the link."""
        return self.moving()

    @property
    def due(self) -> float:
        """The time at which all that was sent ahead so far is there, to `wait` for."""
        return 0.0

    def wait(self, due: float) -> float:
        """Wait until everything sent ahead when `due` was read has arrived. Returns the seconds waited."""
        return 0.0


@dataclass(slots=True)
class Links:
    """The edges of a store to faster tiers: from disk to host, and from host to gpu."""

    disk: Link = field(default_factory=Link)
    host: Link = field(default_factory=Link)

    @property
    def busy_s(self) -> float:
        return self.disk.busy_s + self.host.busy_s
