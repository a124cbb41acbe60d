"""The choice of the device that a model computes on, and of its dtype."""

from __future__ import annotations

import torch


def pick_dtype(name: str, device: torch.device) -> str:
    """The dtype that `auto`, `float32`, `bfloat16` or `float16` means on a device. Raises ValueError."""
    if name == "auto":
        return "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported() else "float16"
    if name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype is auto, float32, bfloat16 or float16, not {name!r}")
    return name


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means. Raises ValueError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is auto, cpu, cuda or cuda:N, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is auto, cpu, cuda or cuda:N, not {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but PyTorch finds no CUDA device; use device=cpu")
    return device
