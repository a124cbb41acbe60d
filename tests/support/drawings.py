"""Pictures that are looked at before they are pixels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def kept(module: ModuleType, patch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that `module` draws from now on, none of which becomes a picture: that takes long."""
    from matplotlib.figure import Figure

    figures: list[Any] = []

    class Kept(Figure):
        def savefig(self, fname: Any, *args: Any, **kwargs: Any) -> None:
            figures.append(self)

    patch.setattr(module, "figure_class", lambda: Kept)
    return figures


def hex_colour(artist: Any) -> str:
    """The colour of a line or a bar, such as `#d1495b`."""
    from matplotlib.colors import to_hex

    return to_hex(artist.get_facecolor() if hasattr(artist, "get_facecolor") else artist.get_color())
