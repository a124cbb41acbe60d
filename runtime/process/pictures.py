"""Pictures of results: a check that one can be drawn, and the library that draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SUFFIXES = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Raise ValueError, before any work, if no picture can be drawn at `path`."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"a picture's name ends in {', '.join(_SUFFIXES)}; not {path.name!r}")
    figure_class()


def figure_class() -> Any:
    """matplotlib's `Figure`. Raises ValueError, with what to install, if it is not there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'stratakv[eval]'") from None
    return Figure
