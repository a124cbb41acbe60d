"""Reads of host memory that a device has been told to do, and may not have done yet."""

from __future__ import annotations

import torch


class InFlight:
    """A device reads pinned memory itself, some time after the host has asked for it. What lies there must not change
    before."""

    def __init__(self) -> None:
        self._last: dict[int, torch.cuda.Event] = {}
        """By stream, the moment at which the last of them is done."""

    def note(self, device: torch.device) -> None:
        """Reads were asked for on the current stream of `device`. A CPU has done them by now."""
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            self._last[stream.stream_id] = stream.record_event()

    def wait(self) -> None:
        """Wait until all that were noted are done."""
        for stream, event in list(self._last.items()):
            event.synchronize()
            if self._last.get(stream) is event:  # another thread that comes meanwhile waits as well
                self._last.pop(stream, None)
