"""How far apart those states lie that are kept inside a text for other conversations (docs/decisions/0048).

A layer without pages leaves a state: a window of KV, or what it made of all tokens before. Whoever begins with the same
text adopts pages up to the newest state and computes what is behind it, so states that lie close save work; and each
takes room, that of a large model's delta nets as much as the KV of thousands of tokens.
"""

from __future__ import annotations

import math

LEAST_INTERVAL = 1024
"""States do not lie closer by default: to compute so many tokens takes little longer than to find out."""
GRID = 64
"""Delta nets take tokens 64 at a time: only there does a text that is cut have the bits of one that is not."""
SHARE = 4
"""States between add at most 1 / `SHARE` to the bytes of pages."""


def state_interval(state_bytes: int, token_bytes: float, page_size: int) -> int:
    """Tokens between states of so many bytes, so that they add no more than `SHARE` says; 0 where there is nothing to
    keep, or pages take no room.

    Args:
        token_bytes: what the pages of a token take where they are stored.
    """
    if not state_bytes or not token_bytes:
        return 0
    wanted, step = max(LEAST_INTERVAL, SHARE * state_bytes / token_bytes), math.lcm(GRID, page_size)
    return math.ceil(wanted / step) * step
