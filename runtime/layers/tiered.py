"""A full-attention layer of one sequence: its KV in pages of the store, found by an index.

Four parts, each in a file of its own, are put together here:

    pages    LayerPages     sealed pages by id, and the open one, the tail
    reader   PageReader     fetches KV of sealed pages, keeps rows of it near
    span     Span           the rows of a prefill span, exact attention
    upkeep   IndexUpkeep    the index's state, in step with the pages

Shapes  G KV heads, R query heads each (H = G*R), L page size, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...retrieval.index import Index, Selection
from ...retrieval.placement import Placement
from ...retrieval.stored import Geometry
from ...storage import TieredStore
from .attend_rows import Attending
from .base import Heads, LayerKV
from .choices import Choices
from .kept import Kept
from .page_reader import PageReader, Recover
from .paged import PagedLayer
from .pages import LayerPages, fill, keys_values
from .placed import Placed
from .prefetch import Prefetcher
from .span import Span
from .standing import Run, Standing
from .stored import check_kv, tensors_under
from .upkeep import IndexPoint, IndexUpkeep
from .workspace import Workspace

LEARNED_EVERY = 512
"""A prefill of at least this many tokens leaves what an index learned: it is as large as the KV of some hundred."""


class LayerPoint(NamedTuple):
    """A point of a layer's past, for `rollback`."""

    num_pages: int
    tail: Tensor
    """`[S, G, n, D]`, a copy."""
    upkeep: IndexPoint
    kept: Kept | None


class TieredLayer(PagedLayer):
    """A layer that may attend to every token before.

    Args:
        budget_of: the tokens that one step may read of a context of so many.
        recover: recomputes damaged pages.
        repeats: query heads per KV head.
        prefetcher: brings up what look-ahead guesses; None: nothing is guessed.
        keep_queries: also keep the queries that indexes learn from, for `follow`ers with another index.
        keep_rows: also keep what a placement may see of prompts' rows, for `follow`ers with one.
        sinks: `[H]`, learned ones (`kernels.sinks`). They are part of the attention whatever an index chooses.
        placement: judges the tokens; None: all are kept, as equals. is_visible: steps read what it keeps, and nothing
            else.
        choices: of the sequence's layers, for an index whose layers choose for others.
    """

    def __init__(
        self, layer: int, store: TieredStore, index: Index, workspace: Workspace, budget_of: Callable[[int], int],
        recover: Recover, *, repeats: int, prefetcher: Prefetcher | None = None, keep_queries: bool = False,
        keep_rows: bool = False, sinks: Tensor | None = None, placement: Placement | None = None,
        is_visible: bool = False, choices: Choices | None = None,
    ) -> None:  # fmt: skip
        pages = LayerPages(store, layer)
        reader = PageReader(pages, workspace, recover, chosen_on_host=index.attends_on_host)
        geometry = Geometry(workspace.span[0, :, :0], 0, repeats)
        upkeep = IndexUpkeep(index, pages, reader, geometry, keep_queries=keep_queries)
        placed = None
        if placement is not None:
            placed = Placed(placement, pages, reader, geometry, is_visible=is_visible)
        super().__init__(
            layer, pages, reader, upkeep, workspace, budget_of, prefetcher, sinks, placed, choices, index.part
        )
        self._rows_kept: list[Tensor] | None = [] if keep_rows else None
        self._cosines_kept: list[Tensor] = []
        self.store, self.span = store, Span(pages, reader, workspace, sinks)

    # Prefill

    def begin(self) -> None:
        self.span.begin()
        self.upkeep.begin_span()
        if self.placed is not None:
            self.placed.begin_span()

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        fill(self.span.rows(start - self.pages.sealed, q.shape[1]), k, v)
        out, lse = self.span.attend(q, k, v, start, scale)
        self._note_rows(lambda rows: q[:, rows], lse, start, scale)
        return out

    def extend_heads(self, q: Tensor, k: Tensor, start: int, scale: float, heads: Heads) -> Tensor:
        _, values = keys_values(k.unsqueeze(0), self.layout)
        if q.shape[1] < heads.expands_from:
            return heads.made(self.extend(heads.absorbed(q), k, values, start, scale))
        fill(self.span.rows(start - self.pages.sealed, q.shape[1]), k, values)
        out, lse = self.span.attend(q, k, values, start, scale, heads.expanded)
        self._note_rows(lambda rows: heads.absorbed(q[:, rows]), lse, start, scale)
        return out

    def _note_rows(self, query: Callable[[slice], Tensor], lse: Tensor, start: int, scale: float) -> None:
        """Show the queries `[H, .., D]` of rows that were added, whose attention gave `lse`, to whoever wants some."""
        queries, size = self.upkeep.queries, self.layout.page_size
        if queries.is_wanted:
            queries.note(query(slice(-(start + 1) % size, None, size)), scale)
        if self.placed is not None:
            self.placed.extend(query(slice(None)), lse, start, scale, self.span.new)
        if self._rows_kept is not None:
            q = query(slice(None))
            self._rows_kept.append(q.float().reshape(self.layout.num_heads, -1, *q.shape[1:]) * scale)

    def compare(self, before: Tensor, after: Tensor) -> None:
        placed = self.placed if self.placed is not None and self.placed.placement.compares else None
        if placed is None and self._rows_kept is None:
            return
        cosines = torch.nn.functional.cosine_similarity(before[0].float(), after[0].float(), dim=-1)
        if placed is not None:
            placed.compare(cosines)
        if self._rows_kept is not None:
            self._cosines_kept.append(cosines)

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        kv, filled = self.span.whole(length), len(chains) * self.layout.page_size
        self.pages.put(chains, tokens, kv[:, :, :filled])
        if filled and not self.index.learns:
            self.upkeep.add(kv[0, :, :filled])
        self.pages.set_tail(kv[:, :, filled:])

    def end_prefill(self) -> None:
        self.upkeep.catch_up()
        if self.placed is not None:
            self.placed.end_prefill()

    # Decode

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._begin_step()
        self.pages.add(k, v)
        self.note_query(q, scale)
        return self._attend(q, scale)

    def _begin_step(self) -> None:
        self.workspace.turns.require()
        self.upkeep.begin_step()

    def count_in(self) -> int:
        """Count one token in, as `step` does, whose k and v the device writes. Returns the slot of the open page.
        Raises CapacityError."""
        self._begin_step()
        return self.pages.count_in()

    def _choose(self, query: Tensor, budget: int) -> Selection:
        chosen = super()._choose(query, budget)
        self.index.remember(self.upkeep.state, chosen)
        return chosen

    def note_query(self, q: Tensor, scale: float) -> None:
        """The query `[H, D]` of a page's last token is what indexes learn from; a placement may learn from each."""
        if self.placed is not None:
            self.placed.note(q, scale)
        queries = self.upkeep.queries
        if queries.is_wanted and self.pages.is_full:
            queries.drop(0)
            queries.note(q.unsqueeze(1), scale)

    def begin_step(self, at: Attending) -> tuple[Run, int, Standing | None]:
        self.upkeep.begin_step()
        run, tokens = self.pages.begin_step()
        return run, tokens, self._standing(at)

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int | None:
        self.note_query(at.q, at.scale)
        return super().attend(rows, at, run)

    def end_page(self, at: Attending) -> None:
        self.note_query(at.q, at.scale)

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        if self.pages.tail_len > tail_len:
            self.upkeep.undo_step()
        self.pages.tail_len = tail_len
        if self.placed is not None:
            self.placed.undo_step(tail_len)

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        self.workspace.turns.require()
        self.lookahead.stop()
        self.reader.count()  # what makes room below must not take what is being read
        self.upkeep.add(self.pages.seal(chain, tokens))
        if self.placed is not None:
            self.placed.seal()

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        names, outs = iter(zip(chains, tokens, strict=True)), []
        for row in range(q.shape[1]):
            outs.append(self.step(q[:, row], k[:, row], v[:, row], scale))
            if self.pages.is_full and (name := next(names, None)) is not None:
                self.seal(*name)
        return torch.stack(outs, 1)

    # What the store and sessions keep

    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        if not self.index.uses_queries or num_computed < LEARNED_EVERY:
            return {}
        return {f"{self.layer}.{name}": tensor for name, tensor in self.upkeep.learned().items()}

    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        """Nothing is needed from `left`; `adopt` checks what it uses."""

    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        self.pages.adopt(chains, tokens)
        self.upkeep.adopt(tensors_under(f"{self.layer}.", left))
        if self.placed is not None:
            self.placed.adopt()

    def export(self) -> dict[str, Tensor]:
        self.upkeep.catch_up()
        state = {f"index.{name}": tensor for name, tensor in self.upkeep.export().items()}
        placed = {} if self.placed is None else self.placed.export()
        return {"tail": self.pages.tail_copy(), **state, **{f"placed.{name}": t for name, t in placed.items()}}

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        name = f"{prefix}tail"
        count = num_tokens % self.layout.page_size
        check_kv(name, tensors.get(name), count, self.layout, self.workspace.dtype)
        return {name} | {name for name in tensors if name.startswith((f"{prefix}index.", f"{prefix}placed."))}

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        self.pages.adopt(chains, tokens)
        if not (has_state and chains and self.upkeep.restore(tensors_under("index.", tensors))):
            self.upkeep.add_stored()
        self.pages.set_tail(tensors["tail"])
        if self.placed is not None:
            self.placed.restore(tensors_under("placed.", tensors) if has_state else {}, num_tokens)

    # Points and copies

    def snapshot(self) -> LayerPoint:
        kept = None if self.placed is None else self.placed.kept
        return LayerPoint(len(self.pages.pids), self.pages.tail_copy(), self.upkeep.snapshot(), kept)

    def rollback(self, point: LayerPoint) -> None:
        self.lookahead.stop()
        self.reader.truncate(point.num_pages * self.layout.page_size)
        self.pages.cut(point.num_pages)
        self.upkeep.rollback(point.upkeep)
        self.pages.set_tail(point.tail)
        if self.placed is not None and point.kept is not None:
            self.placed.kept = point.kept
        if self._rows_kept:
            count = self.pages.sealed + self.pages.tail_len
            self._rows_kept = [torch.cat(self._rows_kept, 2)[:, :, :count]]
            self._cosines_kept = [torch.cat(self._cosines_kept)[:count]]

    def truncate(self, num_pages: int) -> None:
        point = self.snapshot()
        indexed = min(point.upkeep.indexed, num_pages * self.layout.page_size)
        self.rollback(point._replace(
            num_pages=num_pages, tail=point.tail[:, :, :0], upkeep=point.upkeep._replace(indexed=indexed)
        ))  # fmt: skip
        if self.placed is not None:
            self.placed.truncate(num_pages * self.layout.page_size)

    def follow(self, other: TieredLayer) -> None:
        self.pages.share(other.pages)
        self.upkeep.follow(other.upkeep)
        self.pages.set_tail(other.pages.tail_copy())
        if self.placed is not None:
            self.placed.follow(other.placed, other._rows_kept, other._cosines_kept)

    def close(self) -> None:
        self.lookahead.stop()
        self.reader.close()
        self.pages.close()
        self.upkeep.close()


def tiered_layers(layers: Iterable[LayerKV]) -> list[TieredLayer]:
    """The tiered ones among `layers`, in order, for whoever looks at what an index chose or keeps."""
    return [layer for layer in layers if isinstance(layer, TieredLayer)]
