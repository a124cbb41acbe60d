"""Where the Triton kernels are tested: on the GPU where there is one, else in the interpreter on the CPU.

One process can do only one of them: Triton decides when a kernel is defined (`tests/conftest.py`).
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MARKS = [] if INTERPRETED else [pytest.mark.gpu]
"""Of a file that tests Triton kernels."""

_multiply = InterpreterBuilder.create_dot


def _multiply_widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter keeps bf16 as bits, widens them everywhere but here, and would multiply the bits."""
    wide = [self.create_fp_ext(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b)]
    return _multiply(self, *wide, *rest)


InterpreterBuilder.create_dot = _multiply_widened
