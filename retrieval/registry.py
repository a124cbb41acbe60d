"""Index names. A new index is one file, one line here and one line in the tests' list.

Classes are imported on use, so that one index's dependencies never burden another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .params import IndexParams

if TYPE_CHECKING:
    from .index import Index

INDEXES = {
    "bounds": "BoundsIndex",
    "dense": "DenseIndex",
    "oracle": "OracleIndex",
    "window": "WindowIndex",
}
"""Name, which is also the module's, and class."""
AUTO = "bounds"
"""What `auto` means: the only index here that is both sparse and affordable."""


def index_names() -> list[str]:
    """Every name a user may give."""
    return ["auto", *sorted(INDEXES)]


def make_index(name: str, params: IndexParams) -> Index:
    """Raises ValueError for an unknown name."""
    if name not in index_names():
        raise ValueError(f"index is one of {', '.join(index_names())}; not {name!r}")
    name = AUTO if name == "auto" else name
    index: type[Index] = getattr(import_module(f".{name}", __package__), INDEXES[name])
    return index(params)
