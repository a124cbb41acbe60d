"""How much of the fault tests to run."""

from __future__ import annotations

import os


def num_faults(*, default: int, share: float = 1.0) -> int:
    """Trials of a loop: `default` in the ordinary suite, `share` of FAULTS where that is set (`make faults`)."""
    wanted = os.environ.get("FAULTS")
    return default if wanted is None else max(1, int(share * int(wanted)))


def is_long_run() -> bool:
    return "FAULTS" in os.environ
