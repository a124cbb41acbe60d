"""Tiered storage of KV pages: GPU, host and disk. Opaque bytes only; see `tiered_store`."""

from .arena import Arena
from .counters import Counters
from .disk_tier import DiskTier
from .errors import (
    CapacityError,
    ClosedError,
    CorruptPageError,
    ForkedError,
    RecordError,
    SessionChangedError,
    StorageError,
    StorageFullError,
    StoreUnavailableError,
)
from .intake import OpenPage
from .loading import Ticket
from .page import CHAIN_BYTES, ROOT, PageLayout, next_chain, page_key
from .tier import Tier
from .tiered_store import TieredStore

__all__ = [
    "CHAIN_BYTES", "ROOT", "Arena", "CapacityError", "ClosedError", "CorruptPageError", "Counters", "DiskTier",
    "ForkedError", "OpenPage", "PageLayout", "RecordError", "SessionChangedError", "StorageError", "StorageFullError",
    "StoreUnavailableError", "Ticket", "Tier", "TieredStore", "next_chain", "page_key",
]  # fmt: skip
