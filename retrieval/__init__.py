"""Finding the tokens a decode step must read. `index.Index` is the waist, `registry` the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .params import IndexParams
from .registry import index_names, make_index

if TYPE_CHECKING:
    from .index import Index, Selection

__all__ = ["Index", "IndexParams", "Selection", "index_names", "make_index"]


def __getattr__(name: str) -> Any:
    if name in ("Index", "Selection"):
        from . import index

        return getattr(index, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
