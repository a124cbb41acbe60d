"""Pinned host memory, in the background, range by range.

Pinning gigabytes takes seconds, and a chat should not wait for it: the host arena starts as ordinary memory and
a thread registers one range after the other with CUDA (`cudaHostRegister`). A copy from a range that is not
registered yet, or cannot be, is right all the same and only slower.

Invariants  (1) every range that was pinned is unpinned once, by `close`, before the tensor may be freed
            (2) the first range that is refused ends it: what is pinned by then stays pinned, the rest pageable
            (3) no range is pinned after `close` has returned
Memory      pinned ranges are resident from then on, whether slots in them were used or not.
Hardware    the thread and its order are tested with a pin function that only takes notes. No test looks
            at what CUDA (`CudaPins`) has pinned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)

_RANGE_BYTES = 256 << 20


class Pins(Protocol):
    """A way to pin a range of memory. One thread at a time calls it."""

    def pin(self, address: int, num_bytes: int) -> bool:
        """Pin the range; False if it cannot be pinned."""
        ...

    def unpin(self, address: int) -> None: ...


_cudart: Callable[[], Any] = torch.cuda.cudart


class CudaPins:
    """Registers ranges with CUDA's runtime."""

    def pin(self, address: int, num_bytes: int) -> bool:
        return int(_cudart().cudaHostRegister(address, num_bytes, 0)) == 0

    def unpin(self, address: int) -> None:
        _cudart().cudaHostUnregister(address)


class Pinner:
    """Pins `data`, a contiguous tensor in host memory, and keeps it alive until `close`."""

    def __init__(self, data: torch.Tensor, pins: Pins, *, range_bytes: int = _RANGE_BYTES) -> None:
        self._data, self._pins, self.range_bytes = data, pins, range_bytes
        self._pinned: list[int] = []
        self._stopping = threading.Event()
        self.pinned_bytes = 0
        self._thread = threading.Thread(target=self._run, name="stratakv-pinner", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        start, stop = self._data.data_ptr(), self._data.data_ptr() + self._data.nbytes
        for address in range(start, stop, self.range_bytes):
            num_bytes = min(self.range_bytes, stop - address)
            if self._stopping.is_set():
                return
            if not self._pins.pin(address, num_bytes):
                logger.warning(
                    "%d of %d bytes of host memory are pinned and the system gives no more; copies to the gpu from the "
                    "rest are slower: lower host_gb or raise the limit on locked memory (ulimit -l)",
                    self.pinned_bytes, stop - start,
                )  # fmt: skip
                return
            self._pinned.append(address)
            self.pinned_bytes += num_bytes

    def wait(self) -> None:
        """Wait until every range is pinned or one was refused."""
        self._thread.join()

    def close(self) -> None:
        """Stop, and unpin what was pinned. Safe to call twice."""
        self._stopping.set()
        self._thread.join()
        while self._pinned:
            self._pins.unpin(self._pinned.pop())
        self.pinned_bytes = 0


__all__ = ["CudaPins", "Pinner", "Pins"]
