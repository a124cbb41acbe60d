"""A tiny model of random weights to measure, and bandwidths that are measured over little memory."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.runtime.bench import bandwidths

TINY: dict[str, Any] = {
    "shape": "tiny", "dtype": "float32", "budget": 112, "contexts": (200, 700), "steps": 20, "turn_tokens": 20,
}  # fmt: skip


def small_probes(patch: pytest.MonkeyPatch) -> None:
    """Bandwidths are measured over little memory: here they only have to be there."""
    patch.setattr(bandwidths, "_MEMORY_BYTES", dict.fromkeys(bandwidths._MEMORY_BYTES, 1 << 20))
    patch.setattr(bandwidths, "_LINK_BYTES", 1 << 20)
    patch.setattr(bandwidths, "_DISK_BYTES", 1 << 20)


def silent(line: str) -> None:
    pass
