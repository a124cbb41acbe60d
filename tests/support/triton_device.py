"""Where the Triton kernels are tested: on the GPU where there is one, else in the interpreter on the CPU.

One process can do only one of them: Triton decides when a kernel is defined (`tests/conftest.py`).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
MARKS = [] if INTERPRETED else [pytest.mark.gpu]
"""Of a file that tests Triton kernels."""

_multiply, _cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def _multiply_widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    """The interpreter keeps bf16 as bits, widens them everywhere but here, and would multiply the bits."""
    wide = [self.create_fp_ext(t, tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b)]
    return _multiply(self, *wide, *rest)


def _cast_rounding(self: Any, numbers: Any, dtype: Any) -> Any:
    """The interpreter cuts fp32 off to bf16, which GPUs round."""
    if (numbers.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
        return _cast(self, numbers, dtype)
    rounded = torch.from_numpy(np.ascontiguousarray(numbers.data)).bfloat16()
    return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)


InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = _multiply_widened, _cast_rounding
