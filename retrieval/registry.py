"""Index names. A new index is one file, one line here and one line in the tests' list."""

from __future__ import annotations

from .bounds import BoundsIndex
from .dense import DenseIndex
from .index import Index, IndexParams
from .oracle import OracleIndex
from .window import WindowIndex

INDEXES: dict[str, type[Index]] = {
    index.name: index for index in (DenseIndex, WindowIndex, OracleIndex, BoundsIndex)
}
AUTO = "bounds"
"""What `auto` means: the only index here that is both sparse and affordable."""


def index_names() -> list[str]:
    """Every name a user may give."""
    return ["auto", *sorted(INDEXES)]


def make_index(name: str, params: IndexParams) -> Index:
    """Raises ValueError for an unknown name."""
    if name not in index_names():
        raise ValueError(f"index is one of {', '.join(index_names())}; not {name!r}")
    return INDEXES[AUTO if name == "auto" else name](params)
