"""Work of a batch's sequences that the device may do side by side: each on a stream of its own.

One sequence's scores and choices are too little work to fill a device. A recorded step keeps the branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Branches:
    """Streams for all sequences but the first, whose work stays where it is; on a CPU there are none.

    What is made in a branch is read after `join` alone, and its memory is used again by the same branch only, which
    then begins where the main stream is. So nobody reads what another has written over.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(1, count)] if device.type == "cuda" else []
        self._begun: list[torch.cuda.Stream] = []
        """Since the last `join`: a step that is recorded must not wait for a stream that is no part of it."""

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """What is told inside comes after all that the main stream has been told by now, beside other branches."""
        if not number or not self._streams:
            yield
            return
        stream = self._streams[number - 1]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        self._begun.append(stream)
        with torch.cuda.stream(stream):
            yield

    def join(self) -> None:
        """What the main stream is told from now on comes after all branches that have begun."""
        begun, self._begun = self._begun, []
        for stream in begun:
            torch.cuda.current_stream(self._device).wait_stream(stream)
