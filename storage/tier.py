"""The waist of `stratakv.storage`: what a tier is.

A page lives in up to three tiers at once. The store (`tiered_store.TieredStore`) decides; a tier
only holds. Memory tiers are `arena.Arena`s (fixed slots in one tensor); the disk tier is
`disk_tier.DiskTier` (one LMDB environment per model fingerprint).
"""

from __future__ import annotations

from typing import Protocol


class Tier(Protocol):
    """A place with a hard byte cap."""

    name: str
    cap_bytes: int

    @property
    def used_bytes(self) -> int: ...

    @property
    def num_pages(self) -> int: ...

    def check_integrity(self) -> None:
        """Cheap; raises AssertionError naming the numbers that disagree."""
        ...
