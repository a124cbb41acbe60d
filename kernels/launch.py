"""The start of Triton kernels, and the choice of where they run.

A public op runs its Triton kernel where all its tensors are on a CUDA device that Triton compiles for (compute
capability 8.0, Ampere, or later) and Triton is installed; everywhere else it runs its PyTorch form, which is also
what the kernel is tested against. No op waits for the device: grids follow from shapes alone.

State   Kernels are tested in Triton's interpreter on a CPU, compiled ahead of time for sm_80 and sm_90, and pass their
        tests on an NVIDIA H100. Block sizes are reasoned, not measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    if torch.version.cuda is None and "triton" not in sys.modules and "TRITON_INTERPRET" not in os.environ:
        raise ImportError("a torch without CUDA, and nobody who interprets or compiles kernels: none can run")
    import triton
    import triton.language as tl
except ImportError:  # not installed, or no wheels for this platform: ops run their PyTorch form
    triton = tl = None

__all__ = ["block_of", "cdiv", "jit", "launch", "num_splits", "reaches_from", "tl", "uses_triton"]

_OLDEST = (8, 0)
_MOST_SPLITS = 128
_PROGRAMS_PER_SM = 2
"""The number of programs that one multiprocessor holds at least, each with some tens of kilobytes of shared memory."""


def jit(function: Callable[..., None], *, unaligned: Iterable[str] = ()) -> Any:
    """Compile by `triton.jit`; without Triton return the function itself, which nobody calls.

    `unaligned` arguments are taken for no multiples of 16 even where they are. What is known of addresses decides which
    units a thread holds, and so in which order they are added up: that must not follow from how much room a row has.
    Nor is the kernel then compiled once more when the room is one.
    """
    return function if triton is None else triton.jit(function, do_not_specialize_on_alignment=tuple(unaligned))


def uses_triton(*tensors: Tensor | None) -> bool:
    """True if an op on these tensors runs its Triton kernel."""
    given = [t for t in tensors if t is not None]
    return triton is not None and all(t.is_cuda for t in given) and _is_compiled_for(given[0].device)


def reaches_from(device: torch.device, *tensors: Tensor) -> bool:
    """True if a Triton kernel on `device` can read these tensors: they lie there, or in pinned host memory."""
    if triton is None or device.type != "cuda" or not _is_compiled_for(device):
        return False
    return all(t.device == device or (t.device.type == "cpu" and t.is_pinned()) for t in tensors)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start `kernel` on the device of its first argument; an empty grid starts nothing."""
    if 0 in grid:
        return
    device = args[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **{"enable_fp_fusion": True, **options})


def cdiv(count: int, size: int) -> int:
    """The number of blocks of `size` that hold `count`."""
    return -(-count // size)


def block_of(count: int, least: int = 1) -> int:
    """The smallest power of two that holds `count` and is at least `least`: Triton's blocks have no other sizes."""
    return max(least, 1 << max(count - 1, 0).bit_length())


def num_splits(rows: int, blocks: int, device: torch.device) -> int:
    """The number of parts to cut `blocks` blocks into so that `rows` rows of them fill the device."""
    wanted = cdiv(_PROGRAMS_PER_SM * _multiprocessors(device), max(rows, 1))
    return max(1, min(wanted, blocks, _MOST_SPLITS))


@cache
def _is_compiled_for(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _OLDEST


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
