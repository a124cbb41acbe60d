"""Tokens that the device has chosen, or will have, on their way to a host that does other things meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...storage.transfer import clock


class Told:
    """What one step led to, from the block in which it is begun to its tokens: how long that took the device, and the
    tokens themselves. Other work of the device, and what the host does, are not counted.

        with told: begin the step          told.note(tokens)          told.read(), told.seconds
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began, self._ended = _moment(device), _moment(device)

    def __enter__(self) -> Told:
        self._began.record(_stream(self._device))
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """The step is begun."""

    def note(self, tokens: Tensor) -> None:
        """The step leads to these, int64 `[B]`. They are sent; nobody waits."""
        self.tokens = tokens
        self._sent = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._sent.copy_(tokens, non_blocking=True)
        self._ended.record(_stream(self._device))

    def read(self) -> list[int]:
        """The tokens. Waits for them, and for nothing that the device was told afterwards."""
        self._ended.synchronize()
        found: list[int] = self._sent.tolist()
        return found

    @property
    def seconds(self) -> float:
        """Of the step, once its tokens have been read."""
        return float(self._began.elapsed_time(self._ended)) / 1000


def _moment(device: torch.device) -> Any:
    """What is recorded when the device comes there."""
    return torch.cuda.Event(enable_timing=True, blocking=True) if device.type == "cuda" else _Now()


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """Where the device's work comes in order."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


class _Now:
    """A CUDA event of a device that is done with everything at once."""

    def __init__(self) -> None:
        self._now = 0.0

    def record(self, stream: None) -> None:
        self._now = clock.now()

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, later: _Now) -> float:
        """Milliseconds between the two."""
        return 1000 * (later._now - self._now)
