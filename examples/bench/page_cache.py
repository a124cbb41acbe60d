"""Files on a disk that is really asked: durable writes, and reads that the page cache does not serve."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
from torch import Tensor


def write_durably(path: Path, data: Tensor) -> None:
    with open(path, "wb", buffering=0) as file:
        view = memoryview(data.numpy().data).cast("B")
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


# The page cache


def drop_from_cache(folder: Path) -> float:
    """Returns the share of the folder's bytes that is in the page cache nevertheless."""
    resident = total = 0
    for path in folder.iterdir():
        if size := path.stat().st_size:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                resident += resident_bytes(file.fileno(), size)
            total += size
    return resident / total


def resident_bytes(descriptor: int, size: int) -> int:
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        found = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        anchor = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), ctypes.c_void_p(found.ctypes.data)
        )
        del anchor
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return int((found & 1).sum()) * mmap.PAGESIZE


def log(line: str) -> None:
    print(line, file=sys.stderr)
