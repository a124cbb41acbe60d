"""Memory whose bytes a forked child does not get.

An arena is reserved at once and touched as it is used. A child has no use for it (`ForkedError`), and yet a fork would
copy its table of pages, keep its old bytes as long as the child lives, and be refused where what is reserved could
outgrow the machine's memory. So the system does not count it (`MAP_NORESERVE`) and gives the child the same addresses
without the bytes (`MADV_WIPEONFORK`). The addresses stay taken on purpose: the child, too, gives this memory back when
it collects the tensor, and where they were left out (`MADV_DONTFORK`) that took away whatever was mapped there since.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

import torch

# Linux's values on the machines that torch has wheels for. Python names the first from 3.13, the second not at all.
_MAP_NORESERVE = 0x4000
_MADV_WIPEONFORK = 18


def unforked(num_rows: int, row_bytes: int) -> torch.Tensor:
    """uint8 `[num_rows, row_bytes]` in host memory of its own, given back with the tensor. No bytes are touched.

    Linux is asked for huge pages: rows that lie far apart are then read without a look at the table of pages for each.

    Raises MemoryError.
    """
    size = num_rows * row_bytes
    if not size or sys.platform != "linux":
        return torch.empty((num_rows, row_bytes), dtype=torch.uint8, device="cpu")
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        mmap.mmap(-1, size, flags=kind).close()  # the system counts this one, and refuses what it could never give
        mapped = mmap.mmap(-1, size, flags=kind | _MAP_NORESERVE)
    except OSError as error:
        raise MemoryError(f"{size} bytes of host memory cannot be reserved ({error.strerror})") from error
    with suppress(OSError):  # before Linux 4.14 a child shares the bytes until one of the two writes
        mapped.madvise(_MADV_WIPEONFORK)
    with suppress(OSError):  # a system may be built without huge pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8).view(num_rows, row_bytes)
