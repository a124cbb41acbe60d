"""The free slots of an arena, layer by layer apart as long as there is room.

A device that reads single tokens from host memory reads a few bytes each from many places. On an H100 it did so four
times as fast where these lay within 512 MB as within 4 GB (`docs/results/h100_before_whole_steps.json`). So each layer
has a region of its own.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


class FreeSlots:
    """Slots 0 .. count - 1, none of which is taken.

    Args:
        regions: as many as there are layers, or 1: then all are as one.
    """

    def __init__(self, count: int, regions: int = 1) -> None:
        bounds = [count * region // regions for region in range(regions + 1)]
        self._bounds = np.array(bounds)
        self._regions = [_Region(begin, end) for begin, end in pairwise(bounds)]
        self._of_layer: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(len(region) for region in self._regions)

    def take(self, count: int, layer: int) -> np.ndarray:
        """Up to `count` slots, int64: of the layer's region, and when that is full of those with the most room. Slots
        that were used before come first, so that no memory is touched for nothing."""
        own = self._regions[self._of_layer.setdefault(layer, len(self._of_layer) % len(self._regions))]
        found = own.take(count)
        if len(found) < count and len(self._regions) > 1:
            for other in sorted(self._regions, key=len, reverse=True):
                found += other.take(count - len(found))
        return np.array(found, dtype=np.int64)

    def give(self, slots: np.ndarray) -> None:
        """These are free again."""
        if len(self._regions) == 1:
            self._regions[0].freed.extend(slots.tolist())
            return
        for slot, region in zip(slots.tolist(), np.searchsorted(self._bounds, slots, "right") - 1, strict=True):
            self._regions[region].freed.append(slot)

    def check_integrity(self) -> None:
        """Raises AssertionError if a slot is free twice, or in a region that it is not of."""
        for region in self._regions:
            assert len(set(region.freed)) == len(region.freed), "a slot is twice in the free list"
            assert all(region.begin <= slot < region.untouched for slot in region.freed), "a slot is in another region"


class _Region:
    """The free slots among `begin .. end - 1`: those given back, and those that nobody has used yet."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self._end = begin, end
        self.freed: list[int] = []
        self.untouched = begin

    def __len__(self) -> int:
        return len(self.freed) + self._end - self.untouched

    def take(self, count: int) -> list[int]:
        count = min(count, len(self))
        reused = [self.freed.pop() for _ in range(min(count, len(self.freed)))]
        fresh = count - len(reused)
        self.untouched += fresh
        return [*reused, *range(self.untouched - fresh, self.untouched)]
