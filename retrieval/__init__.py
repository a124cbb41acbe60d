"""Finding the tokens a decode step must read. `index.Index` is the waist, `registry` the list."""

from .index import Index, IndexParams, Selection
from .registry import index_names, make_index

__all__ = ["Index", "IndexParams", "Selection", "index_names", "make_index"]
