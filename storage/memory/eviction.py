"""Eviction: the order in which slots of a memory tier are evicted.

Layers are read one after the other, step after step: plain least-recently-used order would always evict
the layer that is read next. So each layer has an even share of the slots, and the order has three ranks:

    0  what a layer holds beyond its share: as many of its pages as that
    1  pages of the layer that asks for room
    2  everything else; only with `force`, when the room is needed whatever it costs

Within a rank cold pages go first (`TieredStore.rank`), and of equals the oldest. Whether a slot may go at all is not
decided here: candidates are resident, unleased and backed by another tier.
"""

from __future__ import annotations

import numpy as np

from .arena import RESIDENT, Arena


def victims(
    arena: Arena, count: int, evictable: np.ndarray, cold: np.ndarray, layer: int, num_layers: int, *, force: bool
) -> np.ndarray:
    """Up to `count` resident, unleased slots to evict to make room for `layer`, first to go first.

    Args:
        evictable: bool `[num_slots]`, what the owner allows to go.
        cold: bool `[num_slots]`, what others are worth more than.
    """
    resident = arena.state == RESIDENT
    excess = np.bincount(arena.layer[resident], minlength=max(int(arena.layer.max(initial=0)), layer) + 1)
    excess -= arena.num_slots // max(num_layers, 1)
    goes_first = excess > 0
    goes_first[layer] = True
    may_go = resident & (arena.leases == 0) & evictable
    some = np.flatnonzero(may_go & goes_first[arena.layer])  # of most layers nothing goes: sorting all takes long
    order = _in_order(arena, some, cold, layer, excess, ranks=2)
    if force and len(order) < count:
        order = _in_order(arena, np.flatnonzero(may_go), cold, layer, excess, ranks=3)
    return order[:count]


def _in_order(
    arena: Arena, candidates: np.ndarray, cold: np.ndarray, layer: int, excess: np.ndarray, *, ranks: int
) -> np.ndarray:
    """Those of the first `ranks`, first to go first. Of a layer there are all candidates or none."""
    layers, last_use, warm = arena.layer[candidates], arena.last_use[candidates], ~cold[candidates]
    ordered = np.lexsort((last_use, warm, layers))
    starts = np.searchsorted(layers[ordered], layers[ordered])
    place = np.empty(len(candidates), dtype=np.int64)
    place[ordered] = np.arange(len(candidates)) - starts
    rank = np.where(place < excess[layers], 0, np.where(layers == layer, 1, 2))
    order = np.lexsort((last_use, warm, rank))
    return candidates[order[rank[order] < ranks]]
