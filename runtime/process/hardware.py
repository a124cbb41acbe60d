"""The machine that figures are measured on: its name, and the memory that this process has of it."""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import Any

import psutil
import torch


def hardware() -> dict[str, Any]:
    """Facts about the machine on which figures are measured, by name."""
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
    """Bytes of anonymous memory of this process; pages mapped from files do not count."""
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
