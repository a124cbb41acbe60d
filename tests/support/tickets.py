"""Loads in two phases, one phase at a time, as `TieredStore.gather` and `prefetch` make them."""

from __future__ import annotations

import numpy as np

from stratakv.storage import TieredStore
from stratakv.storage.transfer.loading import Ticket


def begin(store: TieredStore, pids: np.ndarray) -> Ticket:
    with store._lock:
        return store._loader.begin(pids)


def end(store: TieredStore, ticket: Ticket) -> None:
    with store._lock:
        store._loader.end(ticket, keep_unstored=store._writing.will_store)


def finish(store: TieredStore, ticket: Ticket) -> None:
    """Read what is missing and let go. Raises as `gather` does."""
    try:
        store._loader.finish(ticket)
        store._loader.report(ticket)
    finally:
        end(store, ticket)
