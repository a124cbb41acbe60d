"""The names of all indexes. A new index is one file, one line here and one line in the tests' list.

Classes are imported on use, so that one index's dependencies never burden another, and names are
checked before a tensor library is loaded. A *spec* is a name, or a name with settings of that index:
`magicpig:bits=8:tables=75`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import specs
from .params import IndexParams

if TYPE_CHECKING:
    from .index import Index
    from .layer import IndexedLayer

INDEXES = {
    "a2ats": "A2ATSIndex",
    "bounds": "BoundsIndex",
    "dense": "DenseIndex",
    "leoam": "LeoAMIndex",
    "magicpig": "MagicPIGIndex",
    "oracle": "OracleIndex",
    "shadowkv": "ShadowKVIndex",
    "spectral": "SpectralIndex",
    "window": "WindowIndex",
}
"""Each index's name, which is also its module's, and its class."""
AUTO = "spectral"
"""The index that `auto` stands for: docs/decisions/0010."""


def index_names() -> list[str]:
    """The names that a user may give, with `auto` first."""
    return ["auto", *sorted(INDEXES)]


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split a spec into the index's name, with `auto` resolved, and its settings as text. Raises ValueError for an
    unknown name."""
    name, given = specs.split_spec(spec)
    if name not in index_names():
        raise ValueError(f"index is one of {', '.join(index_names())}; not {name!r}")
    return AUTO if name == "auto" else name, given


def index_class(spec: str) -> tuple[type[Index], Any]:
    """Find an index's class and read its options. Raises ValueError for a name or setting that is unknown or out of
    range."""
    name, given = split_spec(spec)
    found: type[Index] = getattr(import_module(f".indexes.{name}", __package__), INDEXES[name])
    return found, specs.read_options("index", spec, found.Options, given)


def make_index(spec: str, params: IndexParams, layer: IndexedLayer | None = None) -> Index:
    """Make an index for one layer. Raises ValueError as `index_class` does."""
    from .layer import IndexedLayer

    found, options = index_class(spec)
    return found(params, layer or IndexedLayer(), options)
