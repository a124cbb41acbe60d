"""Caps against the machine: a tier that could never be filled is refused before any work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..model.locate import cache_dir

if TYPE_CHECKING:
    from ..api.config import KVConfig

GB = 10**9
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def check_caps(config: KVConfig, device_bytes: int | None = None) -> None:
    """Raises ValueError if a cap is more than there is.

    Args:
        device_bytes: size of the device's own memory. None: it has none, or nobody has asked it yet.
    """
    memory = total_memory()
    _check("host_gb", config.host_gb, memory, "this machine's memory")
    if device_bytes is not None:
        _check("gpu_gb", config.gpu_gb, device_bytes, "the device's memory")
    elif not any(map(os.path.exists, _GPU_FILES)):
        _check("gpu_gb", config.gpu_gb, memory, "this machine's memory (there is no GPU)")
    if config.disk_gb:
        folder = Path(os.path.expanduser(config.path)) if config.path is not None else cache_dir() / "kv"
        _check("disk_gb", config.disk_gb, disk_total(folder), f"the file system of {folder}")


def total_memory() -> int:
    """Bytes of RAM and swap, or what the control group allows."""
    total = int(psutil.virtual_memory().total + psutil.swap_memory().total)
    for limit in _GROUP_LIMITS:
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such controller, or "max": no limit
            continue
    return total


def disk_total(folder: Path) -> int:
    """Bytes of the file system that `folder` is or would be on. Raises OSError."""
    return shutil.disk_usage(_nearest(folder)).total


def disk_free(folder: Path) -> int:
    """Bytes that are free on the file system that `folder` is or would be on. Raises OSError."""
    return shutil.disk_usage(_nearest(folder)).free


def _nearest(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _check(name: str, asked_gb: float | None, there: int, what: str) -> None:
    if asked_gb is not None and asked_gb * GB > there:
        raise ValueError(f"{name} is {asked_gb:g}, but {what} is {there / GB:.3g} GB; lower {name}")
