"""Keeping an index in step with the pages of one layer of one sequence.

An index that learns takes in a prompt at once, when all of it is sealed (`catch_up`): what it learns, and so what
decode reads, must not depend on how the caps cut prefill into spans. Other indexes take in pages as they are sealed.

Shapes  G KV heads, R query heads each, L page size, D head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...retrieval.index import Index, spread_pages
from ...retrieval.stored import Geometry
from .page_queries import PageQueries
from .page_reader import PageReader
from .pages import LayerPages
from .stored import is_sound_state
from .workspace import KEY_BLOCK


class IndexPoint(NamedTuple):
    """A point of an index's past, for `rollback`."""

    state: Any
    """Not a copy: states are only added to."""
    indexed: int
    """Tokens it held."""
    learned: Any
    """`Index.learned_by` of it."""


class IndexUpkeep:
    """The index's state, and how much of the pages it holds.

    Args:
        of: the layer's geometry, with no token; what a stored state is checked against.
        keep_queries: also keep the queries that indexes learn from, for `follow`ers with another index.
    """

    def __init__(
        self, index: Index, pages: LayerPages, reader: PageReader, of: Geometry, *, keep_queries: bool
    ) -> None:
        self.index, self._pages, self._reader, self._of = index, pages, reader, of
        self.state: Any = None
        self.indexed = 0
        """Sealed tokens that the state holds: the first ones."""
        self._before: Any = None
        """`Index.learned_by` of the state before the last step, where steps leave something in it."""
        self.queries = PageQueries(pages.layout.num_heads, used=index.uses_queries)
        self.queries.kept = [] if keep_queries else None

    @property
    def _num_missing(self) -> int:
        """Pages that are sealed and not indexed yet."""
        return (self._pages.sealed - self.indexed) // self._pages.layout.page_size

    def begin_span(self) -> None:
        """Queries that were noted for pages which were not sealed are forgotten."""
        self.queries.drop(self._num_missing)

    def add(self, keys: Tensor) -> None:
        """Take in the keys `[G, n * L, D]` of pages that were just sealed, with the queries noted for them."""
        queries = self.queries.take(self._num_missing)
        if self.indexed:
            self.index.append(self.state, keys, queries)
        else:
            self.state = self.index.build(keys, queries)
        self.indexed += keys.shape[1]
        if self.index.is_outgrown(self.state):
            self._build()

    def catch_up(self) -> None:
        """Take in all that is sealed, and the queries noted for it."""
        if self.indexed == self._pages.sealed:
            return
        queries = self.queries.take(self._num_missing)
        if self.indexed:
            self._append_stored(queries)
        else:
            self._build(queries)

    def begin_step(self) -> None:
        """A step begins: take in what is sealed, and note what `undo_step` goes back to."""
        self.catch_up()  # does something only after a prefill that was interrupted
        if self.index.remembers:
            self._before = self.index.learned_by(self.state) if self.indexed else None

    def undo_step(self) -> None:
        """Forget the last step, which failed before it sealed a page."""
        if self.index.remembers and self.indexed:
            self.index.unlearn(self.state, self._before)

    def add_stored(self, queries: Tensor | None = None) -> None:
        """Take in pages that were computed elsewhere, reading their keys once. Their queries are not known, except that
        an index that is new here may be given those of all pages, `[G, R, pages, D]`."""
        self.queries.forget()
        if self.indexed:
            self._append_stored()
        else:
            self._build(queries)

    def _append_stored(self, queries: Tensor | None = None) -> None:
        """Append sealed pages that are not indexed yet, and their queries `[G, R, pages, D]`."""
        start, sealed, size = self.indexed, self._pages.sealed, self._pages.layout.page_size
        for begin in range(start, sealed, KEY_BLOCK):
            end = min(begin + KEY_BLOCK, sealed)
            some = None if queries is None else queries[:, :, (begin - start) // size : (end - start) // size]
            self.index.append(self.state, self._keys(begin, end), some)
        self.indexed = sealed
        if self.index.is_outgrown(self.state):
            self._build()

    def _build(self, queries: Tensor | None = None) -> None:
        """Fit on a sample of all sealed pages, and of their `queries` `[G, R, pages, D]` where those are known, and
        append every key, read from the store."""
        sealed, size = self._pages.sealed, self._pages.layout.page_size
        if not sealed:
            return
        pages = spread_pages(sealed // size, size).numpy()
        count = max(1, KEY_BLOCK // size)
        blocks = [pages[at : at + count] for at in range(0, len(pages), count)]
        read = [self._reader.pages(block)[0].to(self._of.keys.dtype, copy=True) for block in blocks]
        keys = torch.cat(read, 1)
        positions = torch.from_numpy((pages[:, None] * size + np.arange(size)).reshape(-1)).to(keys.device)
        sampled = None if queries is None else queries[:, :, torch.from_numpy(pages).to(queries.device)]
        state = self.index.fit(keys, positions, sampled, self.state)
        for begin in range(0, sealed, KEY_BLOCK):
            self.index.append(state, self._keys(begin, min(begin + KEY_BLOCK, sealed)))
        self.state, self.indexed = state, sealed

    def _keys(self, begin: int, end: int) -> Tensor:
        """Sealed keys `[G, end - begin, D]` in their own dtype: a reader on a CPU widens them."""
        return self._reader.block(begin, end)[0].to(self._of.keys.dtype)

    # What the store and sessions keep

    def learned(self) -> dict[str, Tensor]:
        """The state as tensors, with what the index learned and without any token: for `adopt`."""
        state = self.index.copy(self.state)
        self.index.truncate(state, 0)
        return self.index.export(state)

    def adopt(self, learned: dict[str, Tensor]) -> None:
        """Take in pages that the store had; unless there are any already, with what `learned` gave for a sequence that
        began with them, if that is sound. It may come from anywhere."""
        is_sound = bool(learned) and self._is_sound(learned, 0)
        if is_sound and not self.indexed:
            self.state = self._restored(learned)
            self._append_stored()
        else:
            self.add_stored()

    def export(self) -> dict[str, Tensor]:
        """The state as tensors, copies; empty if nothing is indexed."""
        state = self.index.export(self.state) if self.indexed else {}
        return {name: tensor.clone() for name, tensor in state.items()}

    def restore(self, state: dict[str, Tensor]) -> bool:
        """Take over what `export` gave for the pages that are here, if it is sound; it may come from anywhere. Returns
        whether it is."""
        if not self._is_sound(state, self._pages.sealed):
            return False
        self.state, self.indexed = self._restored(state), self._pages.sealed
        return True

    def _is_sound(self, state: dict[str, Tensor], num_tokens: int) -> bool:
        return is_sound_state(self.index, self._pages.layer, state, self._of._replace(num_tokens=num_tokens))

    def _restored(self, state: dict[str, Tensor]) -> Any:
        return self.index.restore({name: tensor.to(self._of.keys.device) for name, tensor in state.items()})

    # Points and copies

    def snapshot(self) -> IndexPoint:
        learned = self.index.learned_by(self.state) if self.indexed else None
        return IndexPoint(self.state, self.indexed, learned)

    def rollback(self, point: IndexPoint) -> None:
        """Back to an earlier snapshot. The pages have gone back before."""
        if point.indexed:
            self.state = point.state  # another one if it has been outgrown since
            self.index.truncate(self.state, point.indexed)
            self.index.unlearn(self.state, point.learned)
        self.indexed = point.indexed
        self.queries.drop(self._num_missing)
        self.queries.truncate(len(self._pages.pids))

    def follow(self, other: IndexUpkeep) -> None:
        """Hold what `other` holds of the same pages: a copy of its state if the index is the same one. Another index is
        built from the pages' keys, and from their queries where `other` kept them."""
        if self.index is other.index and other.indexed:
            self.state, self.indexed = self.index.copy(other.state), other.indexed
        self.add_stored(other.queries.all_kept() if self.index.uses_queries else None)

    def close(self) -> None:
        self.state, self.indexed, self._before = None, 0, None
