"""An edge between two tiers: how long it was busy, and a speed that it can be held to.

Held to a speed, an edge carries one transfer at a time and a transfer takes at least as long as its bytes
would: a fast machine then stands for one with a slower bus or disk. Waiting is sleeping, so that the
processor is as free meanwhile as it would be beside a real transfer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass


@dataclass(slots=True)
class Transfer:
    """Set `num_bytes` before the end of the `with` block."""

    num_bytes: int = 0


class Link:
    """One edge, for transfers in one direction."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self.busy_s = 0.0
        """Time of all transfers together."""
        self._one_at_a_time = threading.Lock()
        self._sum = threading.Lock()

    @contextmanager
    def moving(self) -> Iterator[Transfer]:
        """What moves inside the block is one transfer. Nothing that others wait for may be locked around it."""
        transfer, speed = Transfer(), self.bytes_per_s
        with self._one_at_a_time if speed else nullcontext():
            started = time.perf_counter()
            yield transfer
            taken = time.perf_counter() - started
            if speed and transfer.num_bytes / speed > taken:
                time.sleep(transfer.num_bytes / speed - taken)
            if transfer.num_bytes:
                with self._sum:
                    self.busy_s += time.perf_counter() - started
