"""How far apart those states lie that are kept inside a text for other conversations (docs/decisions/0048).

A layer without pages leaves a state: a window of KV, or what it made of all tokens before. Whoever begins with the same
text adopts pages up to the newest state and computes what is behind it, so states that lie close save work; and each
takes room, that of a large model's delta nets as much as the KV of thousands of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

LEAST_INTERVAL = 1024
"""States do not lie closer by default: to compute so many tokens takes little longer than to find out."""
GRID = 64
"""Delta nets take tokens 64 at a time: only there does a text that is cut have the bits of one that is not."""
SHARE = 4
"""States between add at most 1 / `SHARE` to the bytes of pages."""


def state_bytes(
    windows: Sequence[int | None], states: Sequence[dict[str, tuple[int, ...]] | None],
    shapes: Iterable[tuple[int, int, int]], page_size: int, item_bytes: int,
) -> int:  # fmt: skip
    """The most bytes of what the layers of a model leave together at one place.

    Args:
        windows: of each layer, None where it does not slide. states: shapes of a recurrent layer's state, None where it
            is none. shapes: query heads, KV heads and their dim, of each layer.
        item_bytes: of a number of a window; a state's are fp32.
    """
    total = 0
    for window, state, (_, kv_heads, dim) in zip(windows, states, shapes, strict=True):
        if state is not None:
            total += 4 * sum(map(math.prod, state.values()))
        elif window is not None:
            total += 2 * kv_heads * dim * item_bytes * (window - 1 + page_size)
    return total


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
