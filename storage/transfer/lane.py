"""Copies to a device beside its other work, in an order of their own.

    host     tells   copy 1    copy 2          work on 1   copy 3 ...        and waits for nothing
    lane     does    copy 1 -> copy 2 ------------------> copy 3
    device   does              (waits for 1) work on 1 -> (waits for 2) ...

On CUDA the lane is a stream. Elsewhere a copy is done when it is told, and there is nothing to wait for.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..memory.in_flight import InFlight


class Moment(Protocol):
    """The end of some work that was told."""

    def wait(self) -> None:
        """Whatever the device is told from here on begins after it. The host does not wait."""


class _Past:
    def wait(self) -> None:
        """It has been."""


class Lane:
    """A lane of memory that the host itself copies to."""

    def now(self) -> Moment:
        """The end of all that the device, not this lane, was told so far."""
        return _Past()

    def after(self, moment: Moment) -> None:
        """Copies from here on begin after it."""

    def copy(self, out: Tensor, source: Tensor) -> None:
        """`out` lies on the device, `source` in host memory; both stay as they are until the copy has arrived."""
        out.copy_(source)

    def note(self, reads: InFlight) -> None:
        """The copies told so far may still read from there."""

    def arrival(self) -> Moment:
        """The end of all copies told so far."""
        return _Past()


class CudaLane(Lane):
    """A lane of a GPU. From memory that is not pinned a copy is right, too, and the host waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def now(self) -> Moment:
        return _recorded(torch.cuda.current_stream(self._device))

    def after(self, moment: Moment) -> None:
        with torch.cuda.stream(self._stream):
            moment.wait()

    def copy(self, out: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            out.copy_(source, non_blocking=True)

    def note(self, reads: InFlight) -> None:
        with torch.cuda.stream(self._stream):
            reads.note(self._device)

    def arrival(self) -> Moment:
        return _recorded(self._stream)


def _recorded(stream: torch.cuda.Stream) -> Moment:
    event: torch.cuda.Event = stream.record_event()
    return event


def for_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """`numbers` in host memory, page-locked if the device is a GPU: nobody waits for a copy of them there that is told
    with `non_blocking`."""
    made = torch.from_numpy(numbers)
    return made.pin_memory() if device.type == "cuda" else made


def lane_of(device: torch.device) -> Lane:
    return CudaLane(device) if device.type == "cuda" else Lane()
