"""Finding the tokens a decode step must read. `index.Index` is the waist, `registry` the list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .params import IndexParams
from .registry import index_names, make_index, split_spec

if TYPE_CHECKING:
    from .index import Index, Selection
    from .layer import IndexedLayer

__all__ = ["Index", "IndexParams", "IndexedLayer", "Selection", "index_names", "make_index", "split_spec"]

_LAZY = {"Index": "index", "Selection": "index", "IndexedLayer": "layer"}
"""Names whose modules import a tensor library: they are imported on first use."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
