"""A session's or a state's payload taken apart and put together again without any of the checks of safetensors."""

from __future__ import annotations

import json
from typing import Any


class Payload:
    """Change `layout`, `header` (a session's) or `data`; `bytes` says what was asked for, however wrong."""

    def __init__(self, payload: bytes) -> None:
        length = int.from_bytes(payload[:8], "little")
        self.layout: dict[str, Any] = json.loads(payload[8 : 8 + length])
        self.metadata: dict[str, Any] = self.layout.pop("__metadata__")
        self.header: Any = json.loads(self.metadata["stratakv"]) if "stratakv" in self.metadata else None
        self.data = bytearray(payload[8 + length :])

    def bytes(self) -> bytes:
        if self.header is not None:
            self.metadata["stratakv"] = json.dumps(self.header)
        text = json.dumps({"__metadata__": self.metadata, **self.layout}).encode()
        return len(text).to_bytes(8, "little") + text + bytes(self.data)

    def fill(self, name: str, value: bytes) -> None:
        """Every byte of a tensor, from `value` over and over."""
        start, stop = self.layout[name]["data_offsets"]
        self.data[start:stop] = (value * (stop - start))[: stop - start]

    def drop(self, name: str) -> None:
        """A tensor and its bytes; the others move up."""
        start, stop = self.layout.pop(name)["data_offsets"]
        del self.data[start:stop]
        for entry in self.layout.values():
            if entry["data_offsets"][0] >= stop:
                entry["data_offsets"] = [at - (stop - start) for at in entry["data_offsets"]]
