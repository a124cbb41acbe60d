"""The definitions of printed figures, one each for replies, the chat, `bench` and `eval`. docs/FIGURES.md lists them.

A figure that nothing was measured for is None, null in JSON and `-` where people read it: not 0, and not infinite.
"""

from __future__ import annotations

import json
import math
from typing import Any

from ...storage.transfer import clock


class Stopwatch:
    """Adds up the time spent inside `with` blocks; one that is left by an exception does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = 0.0
        """When the last block began, by the clock."""

    def __enter__(self) -> Stopwatch:
        self.began = clock.now()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.seconds += clock.now() - self.began


def per_second(count: float, seconds: float) -> float | None:
    """`count` per second; None where nothing was counted or no time was measured."""
    return count / seconds if count and seconds > 0 else None


def ratio(part: float, whole: float) -> float | None:
    """`part` divided by `whole`; None where there is no whole."""
    return part / whole if whole else None


def shown(figure: float | None, form: str) -> str:
    """The figure as by `format(figure, form)`, or a dash where there is none."""
    return "-" if figure is None else format(figure, form)


def to_json(result: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: infinite numbers and NaN become null."""
    return json.dumps(_finite(result), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
