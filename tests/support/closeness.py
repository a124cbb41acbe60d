"""How close is close, stated once; head shapes to try; memory that shows when it is read unwritten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest error relative to the largest expected magnitude.

fp32: sums of up to a thousand products in another order. Half types: the result is rounded once
(2^-11 and 2^-8), and fused attention also rounds its weights; four of those roundings.
"""
LSE_TOLERANCE = {torch.float32: 5e-6, torch.float16: 5e-5, torch.bfloat16: 5e-5}
"""The log-sum-exp is fp32 whatever the inputs, but fused attention on half types takes a shorter exp
(about 2^-17), which is still far below what rounding the result costs.
"""
HEAD_SHAPES = [(1, 64), (3, 128), (4, 256), (8, 64), (1, 256), (8, 128)]
"""Query heads per KV head, and head dim."""


def assert_close(name: str, found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """`dtype` is that of the inputs; `name` is `lse` for log-sum-exps."""
    tolerance = (LSE_TOLERANCE if name == "lse" else TOLERANCE)[dtype]
    assert found.shape == expected.shape, f"{name}: {list(found.shape)}, expected {list(expected.shape)}"
    difference = (found.double() - expected.double()).abs().max().item() if found.numel() else 0.0
    scale = max(expected.double().abs().max().item(), 1e-3) if found.numel() else 1.0
    assert difference <= tolerance * scale, f"{name}: off by {difference:.2e} of {scale:.2e}"


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns NaN, so that memory that was never written cannot pass for a result."""
    empty = torch.empty

    def poisoned(*size: int, **options: object) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
