"""Tiered storage of KV pages: GPU, host and disk. Opaque bytes only; see `tiered_store`.

Names are imported on first use: the disk tier alone, which is all that looking after saved sessions takes, needs no
tensor library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arena import Arena
    from .counters import Counters
    from .disk_tier import DiskTier
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
    from .intake import OpenPage
    from .loading import Ticket
    from .page import CHAIN_BYTES, ROOT, PageLayout, next_chain, page_key
    from .tier import Tier
    from .tiered_store import TieredStore

__all__ = [
    "CHAIN_BYTES", "ROOT", "Arena", "CapacityError", "ClosedError", "CorruptPageError", "Counters", "DiskTier",
    "ForkedError", "LaterStoreError", "LaterVersionError", "OpenPage", "PageLayout", "RecordError",
    "SessionChangedError", "StorageError", "StorageFullError", "StoreUnavailableError", "Ticket", "Tier", "TieredStore",
    "UnknownPagesError", "next_chain", "page_key",
]  # fmt: skip

_NAMES = {
    "arena": ["Arena"],
    "counters": ["Counters"],
    "disk_tier": ["DiskTier"],
    "errors": [
        "CapacityError", "ClosedError", "CorruptPageError", "ForkedError", "LaterStoreError", "LaterVersionError",
        "RecordError", "SessionChangedError", "StorageError", "StorageFullError", "StoreUnavailableError",
        "UnknownPagesError",
    ],
    "intake": ["OpenPage"],
    "loading": ["Ticket"],
    "page": ["CHAIN_BYTES", "ROOT", "PageLayout", "next_chain", "page_key"],
    "tier": ["Tier"],
    "tiered_store": ["TieredStore"],
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
