"""How long a prompt still takes, from what was computed so far."""

from __future__ import annotations

import math

from stratakv.runtime.api.progress import Progress


def test_the_rest_takes_as_long_as_what_was_computed() -> None:
    assert Progress(total=100, cached=0, processed=20, elapsed_s=5.0).eta_s == 20
    assert Progress(total=100, cached=0, processed=100, elapsed_s=25.0).eta_s == 0


def test_tokens_from_the_store_took_no_time() -> None:
    """20 of the 60 were computed; 40 are still to come."""
    assert Progress(total=100, cached=40, processed=60, elapsed_s=5.0).eta_s == 10


def test_before_the_first_step_nobody_knows() -> None:
    assert Progress(total=100, cached=40, processed=40, elapsed_s=0.5).eta_s == math.inf
