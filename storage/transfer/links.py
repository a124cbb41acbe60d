"""Edges between tiers, and how long they were busy.

Every transfer passes through the link of its edge. Whoever measures may put another link in its place, one that makes
transfers take longer: `due` and `wait` are for that, since here all that was sent ahead is there once it is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from . import clock


@dataclass(slots=True)
class Transfer:
    """Set `num_bytes` before the end of the `with` block."""

    num_bytes: int = 0


class Link:
    """One edge, for transfers in one direction. For any thread."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Seconds of all transfers together."""
        self._sum = threading.Lock()

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        """What moves inside the block is one transfer. Nothing that others wait for may be locked around it."""
        transfer, started = Transfer(), clock.now()
        yield transfer
        if transfer.num_bytes:
            with self._sum:
                self.busy_s += clock.now() - started

    def sending(self) -> AbstractContextManager[Transfer]:
        """The same for what is sent ahead: the block ends as soon as it is copied, however slow the link is."""
        return self.moving()

    @property
    def due(self) -> float:
        """A time to `wait` for: when all that was sent ahead so far is there."""
        return 0.0

    def wait(self, due: float) -> float:
        """Wait until what was `due` then is there; returns for how many seconds."""
        return 0.0


@dataclass(slots=True)
class Links:
    """A store's edges to faster tiers: from disk to host, and from host to gpu."""

    disk: Link = field(default_factory=Link)
    host: Link = field(default_factory=Link)

    @property
    def busy_s(self) -> float:
        return self.disk.busy_s + self.host.busy_s
