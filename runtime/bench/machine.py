"""What the figures were measured on: its name, its memory, and the fastest it moves bytes."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..figures import Stopwatch

_REPEATS = 5
_MEMORY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
_LINK_BYTES = 256 << 20
_DISK_BYTES = 128 << 20


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    found = {
        "cpu": cpu, "cores": os.cpu_count(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "platform": platform.platform(terse=True),
    }  # fmt: skip
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def private_bytes() -> int:
    """Anonymous memory of this process; pages mapped from files do not count."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Samples `private_bytes` every 10 ms while it is open; `peak` is the largest seen."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, private_bytes())

    def __enter__(self) -> PeakMemory:
        self.peak = private_bytes()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bandwidths:
    """Bytes per second that were reached here, or are let through where an edge is slowed down on purpose."""

    memory: float
    """Reading the memory of the compute device."""
    link: float
    """Host memory to the compute device: over PCIe, or beside no GPU a copy from memory to memory."""
    disk: float
    """Reading a file that is not in the page cache."""

    def limited(self, link_gbps: float | None, disk_gbps: float | None) -> Bandwidths:
        """With the edges no faster than these."""
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
    """The best of a few tries each; the disk is the one that holds `folder`."""
    found = Bandwidths(memory=_memory(device), link=_link(device), disk=_disk(folder))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _memory(device: torch.device) -> float:
    data = torch.ones(_MEMORY_BYTES[device.type] // 4, device=device)
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
