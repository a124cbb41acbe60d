"""Memory that a forked child does not get.

An arena is reserved at once and touched as it is used. A fork counts what is reserved: the kernel refuses one where a
mapping could outgrow the machine's memory, and neighbouring mappings are one to it. A child has no use for any of it
(`ForkedError`), so where the system can be told so, the mapping is left out of children.
"""

from __future__ import annotations

import mmap

import torch


def unforked(num_rows: int, row_bytes: int) -> torch.Tensor:
    """uint8 `[num_rows, row_bytes]` in host memory of its own, given back with the tensor. No bytes are touched.

    Raises MemoryError.
    """
    size = num_rows * row_bytes
    if not size or not hasattr(mmap, "MADV_DONTFORK"):
        return torch.empty((num_rows, row_bytes), dtype=torch.uint8, device="cpu")
    try:
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        mapped.madvise(mmap.MADV_DONTFORK)
    except OSError as error:
        raise MemoryError(f"{size} bytes of host memory cannot be reserved ({error.strerror})") from error
    return torch.frombuffer(mapped, dtype=torch.uint8).view(num_rows, row_bytes)
