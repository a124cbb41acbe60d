"""Which dtype a model is computed in."""

from __future__ import annotations

import torch


def pick_dtype(name: str, device: torch.device) -> str:
    """The dtype `auto`, `float32`, `bfloat16` or `float16` means on a device. Raises ValueError."""
    if name == "auto":
        return "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported() else "float16"
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is auto, float32, bfloat16 or float16, not {name!r}")
    return name
