"""Which page gives way: the order in which slots of a memory tier are evicted.

Layers are read one after the other, step after step: plain least-recently-used order would always evict
the layer that is read next. So each layer has an even share of the slots, and the order has three ranks:

    0  what a layer holds beyond its share: as many of its pages as that, the first by the policy's order
    1  pages of the layer that asks for room
    2  everything else; only with `force`, when the room is needed whatever it costs

A policy says only how pages are ordered within a layer and within a rank. Whether a slot may go at all is
not its business: it is given candidates that are resident, unleased and backed by another tier.

    lru     oldest first
    scored  lowest score first (`TieredStore.note_scores`), among equals oldest first. A page nobody scored
            counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arena import RESIDENT, Arena

Order = Callable[[Arena, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
"""Sort keys of candidate slots of an arena, the last one first as in `np.lexsort`, given scores by page id."""


def _lru(arena: Arena, slots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    return (arena.last_use[slots],)


def _scored(arena: Arena, slots: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    return arena.last_use[slots], scores[arena.page[slots]]


POLICIES: dict[str, Order] = {"lru": _lru, "scored": _scored}


def make_policy(name: str) -> Order:
    """Raises ValueError for a name that is not in `POLICIES`."""
    if name not in POLICIES:
        raise ValueError(f"eviction is one of {sorted(POLICIES)}, not {name!r}")
    return POLICIES[name]


def victims(
    arena: Arena,
    count: int,
    evictable: np.ndarray,
    layer: int,
    num_layers: int,
    *,
    force: bool,
    policy: Order = _lru,
    scores: np.ndarray = np.empty(0),  # noqa: B008
) -> np.ndarray:
    """Up to `count` resident, unleased slots to evict to make room for `layer`, first to go first.

    Args:
        evictable: bool `[num_slots]`, what the owner allows to go.
        scores: by page id; only `scored` looks at them.
    """
    resident = arena.state == RESIDENT
    candidates = np.flatnonzero(resident & (arena.leases == 0) & evictable)
    layers = arena.layer[candidates]
    excess = np.bincount(arena.layer[resident], minlength=int(arena.layer.max(initial=0)) + 1)
    excess -= arena.num_slots // max(num_layers, 1)
    keys = policy(arena, candidates, scores)
    ordered = np.lexsort((*keys, layers))
    starts = np.searchsorted(layers[ordered], layers[ordered])
    place = np.empty(len(candidates), dtype=np.int64)
    place[ordered] = np.arange(len(candidates)) - starts
    rank = np.where(place < excess[layers], 0, np.where(layers == layer, 1, 2))
    order = np.lexsort((*keys, rank))
    if not force:
        order = order[rank[order] < 2]
    return candidates[order[:count]]


__all__ = ["POLICIES", "Order", "make_policy", "victims"]
