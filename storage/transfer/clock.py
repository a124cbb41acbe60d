"""The clock that every printed time is measured by. Ask for `clock.now()`, not for `now`: whoever wants to know what a
figure counts puts another clock in its place (`tests/support/hand_clock.py`)."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds since some moment; never goes back."""
    return time.perf_counter()
