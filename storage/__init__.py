"""Tiered storage of KV pages: GPU, host and disk. Opaque bytes only; see `tiered_store`.

Names are imported on first use: the disk tier alone, which is all that looking after saved sessions takes, needs no
tensor library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .counters import Counters
    from .disk.disk_tier import DiskTier
    from .errors import (
        CapacityError,
        ClosedError,
        CorruptPageError,
        ForkedError,
        LaterStoreError,
        LaterVersionError,
        RecordError,
        SessionChangedError,
        StorageError,
        StorageFullError,
        StoreUnavailableError,
        UnknownPagesError,
    )
    from .memory.arena import Arena
    from .page import CHAIN_BYTES, ROOT, PageLayout, next_chain, page_key
    from .tiered_store import TieredStore
    from .transfer.intake import OpenPage

__all__ = [
    "CHAIN_BYTES", "ROOT", "Arena", "CapacityError", "ClosedError", "CorruptPageError", "Counters", "DiskTier",
    "ForkedError", "LaterStoreError", "LaterVersionError", "OpenPage", "PageLayout", "RecordError",
    "SessionChangedError", "StorageError", "StorageFullError", "StoreUnavailableError", "TieredStore",
    "UnknownPagesError", "next_chain", "page_key",
]  # fmt: skip

_NAMES = {
    "memory.arena": ["Arena"],
    "counters": ["Counters"],
    "disk.disk_tier": ["DiskTier"],
    "errors": [
        "CapacityError", "ClosedError", "CorruptPageError", "ForkedError", "LaterStoreError", "LaterVersionError",
        "RecordError", "SessionChangedError", "StorageError", "StorageFullError", "StoreUnavailableError",
        "UnknownPagesError",
    ],
    "transfer.intake": ["OpenPage"],
    "page": ["CHAIN_BYTES", "ROOT", "PageLayout", "next_chain", "page_key"],
    "tiered_store": ["TieredStore"],
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
