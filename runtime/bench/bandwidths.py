"""The fastest that a machine moves bytes over each edge between tiers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..api.figures import Stopwatch

_REPEATS = 5
_MEMORY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_LINK_BYTES = 256 << 20
_DISK_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Bandwidths:
    """Bytes per second that were reached here, or are allowed where an edge is slowed down on purpose."""

    memory: float
    """Bytes per second of reading the memory of the compute device."""
    link: float
    """Bytes per second from host memory to the compute device: over PCIe, or without a GPU a copy from memory to
    memory."""
    disk: float
    """Bytes per second of reading a file that is not in the page cache."""

    def limited(self, link_gbps: float | None, disk_gbps: float | None) -> Bandwidths:
        """The same bandwidths with edges no faster than these, in GB per second."""
        link = self.link if link_gbps is None else min(self.link, 1e9 * link_gbps)
        disk = self.disk if disk_gbps is None else min(self.disk, 1e9 * disk_gbps)
        return Bandwidths(memory=self.memory, link=link, disk=disk)

    def as_dict(self) -> dict[str, float]:
        return {
            "memory_bytes_per_s": self.memory,
            "link_bytes_per_s": self.link,
            "disk_bytes_per_s": self.disk,
        }


def measure_bandwidths(device: torch.device, folder: Path) -> Bandwidths:
    """Measure all bandwidths, each as the best of a few tries; the disk is the one that holds `folder`."""
    found = Bandwidths(memory=_memory(device), link=_link(device), disk=_disk(folder))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _memory(device: torch.device) -> float:
    data = torch.ones(_MEMORY_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(data)
    read = data.nbytes / _best(data.sum, device)
    copied = 2 * data.nbytes / _best(lambda: other.copy_(data), device)
    return max(read, copied)


def _link(device: torch.device) -> float:
    data = torch.ones(_LINK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(_LINK_BYTES, dtype=torch.uint8, device=device)
    return _LINK_BYTES / _best(lambda: there.copy_(data, non_blocking=True), device)


def _disk(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(_DISK_BYTES))
        file.flush()
        os.fsync(file.fileno())
        buffer = bytearray(_DISK_BYTES)

        def read() -> None:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            os.preadv(file.fileno(), [buffer], 0)

        return _DISK_BYTES / min(_timed(read) for _ in range(_REPEATS))


def _best(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    return min(_timed(wait) for _ in range(_REPEATS))


def _timed(work: Callable[[], None]) -> float:
    with Stopwatch() as watch:
        work()
    return watch.seconds
