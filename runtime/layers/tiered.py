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
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.sinks import with_sinks
from ...retrieval.index import Index
from ...retrieval.reading import read_exactly
from ...retrieval.stored import Geometry
from ...storage import TieredStore
from .attend_rows import Attending
from .base import LayerKV
from .lookahead import Lookahead
from .page_reader import PageReader, Recover
from .pages import LayerPages, fill
from .prefetch import Prefetcher
from .span import Span
from .standing import Run, Standing
from .step import Step
from .stored import check_kv, tensors_under
from .tiered_rows import TieredRows
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


class TieredLayer(LayerKV):
    """A layer that may attend to every token before.

    Args:
        budget_of: the tokens that one step may read of a context of so many.
        recover: recomputes damaged pages.
        repeats: query heads per KV head.
        prefetcher: brings up what look-ahead guesses; None: nothing is guessed.
        keep_queries: also keep the queries that indexes learn from, for `follow`ers with another index.
        sinks: `[H]`, learned ones (`kernels.sinks`). They are part of the attention whatever an index chooses.
    """

    is_paged: ClassVar[bool] = True

    def __init__(
        self, layer: int, store: TieredStore, index: Index, workspace: Workspace, budget_of: Callable[[int], int],
        recover: Recover, *, repeats: int, prefetcher: Prefetcher | None = None, keep_queries: bool = False,
        sinks: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._sinks = sinks
        self.layer, self.store, self.index, self.workspace = layer, store, index, workspace
        self.layout, self.budget_of = store.layout, budget_of
        self.pages = LayerPages(store, layer)
        self.reader = PageReader(self.pages, workspace, recover, chosen_on_host=index.attends_on_host)
        self.span = Span(self.pages, self.reader, workspace, sinks)
        geometry = Geometry(workspace.span[0, :, :0], 0, repeats)
        self.upkeep = IndexUpkeep(index, self.pages, self.reader, geometry, keep_queries=keep_queries)
        self.rows = TieredRows(self.pages, self.reader, index)
        self.lookahead = Lookahead(self.pages, self.reader, index, prefetcher)
        self.watch: Callable[[TieredLayer, Step], None] | None = None
        """Told of every step, for evaluation and tests."""

    # Prefill

    def begin(self) -> None:
        self.span.begin()
        self.upkeep.begin_span()

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        fill(self.span.rows(start - self.pages.sealed, q.shape[1]), k, v)
        queries, size = self.upkeep.queries, self.layout.page_size
        if queries.is_wanted:
            queries.note(q[:, -(start + 1) % size :: size], scale)
        return self.span.attend(q, k, v, start, scale)

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        kv, filled = self.span.whole(length), len(chains) * self.layout.page_size
        self.pages.put(chains, tokens, kv[:, :, :filled])
        if filled and not self.index.learns:
            self.upkeep.add(kv[0, :, :filled])
        self.pages.set_tail(kv[:, :, filled:])

    def end_prefill(self) -> None:
        self.upkeep.catch_up()

    # Decode

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self._begin_step()
        self.pages.add(k, v)
        self._note_query(q, scale)
        return self._attend(q, scale)

    def _begin_step(self) -> None:
        self.workspace.turns.require()
        self.upkeep.catch_up()  # does something only after a prefill that was interrupted

    def _note_query(self, q: Tensor, scale: float) -> None:
        """The query `[H, D]` of a page's last token is what indexes learn from."""
        queries = self.upkeep.queries
        if queries.is_wanted and self.pages.is_full:
            queries.drop(0)
            queries.note(q.unsqueeze(1), scale)

    def _attend(self, q: Tensor, scale: float) -> Tensor:
        query = q.view(self.layout.num_heads, -1, self.layout.head_dim)
        ids, unit, out, lse = self._attend_chosen(query, scale)
        self._tell(query, scale, ids, unit, out, lse)
        if self._sinks is not None:
            out = with_sinks(out, lse, self._sinks.view(lse.shape))
        return out.flatten(0, 1)

    def _tell(
        self, query: Tensor, scale: float, ids: Tensor | None, unit: int, out: Tensor, lse: Tensor
    ) -> None:  # fmt: skip
        self.tokens_read = (ids.shape[1] * unit if ids is not None else 0) + self.pages.tail_len
        if self.watch is not None:  # the query is a copy: a graph may write there again (`captured`)
            self.watch(self, Step(query.clone(), scale, None if ids is None else ids.cpu().numpy(), unit, out, lse))

    def _attend_chosen(self, query: Tensor, scale: float) -> tuple[Tensor | None, int, Tensor, Tensor]:
        """Unit ids `[G, n]` (None when nothing is sealed yet), tokens per unit, out and lse."""
        tail, sealed, reader = self.pages.tail, self.pages.sealed, self.reader
        self.lookahead.begin_step()
        if not sealed:
            return None, 1, *decode_attention(query, [tail], scale=scale)
        budget, state = self._budget, self.upkeep.state
        if budget >= sealed:
            reader.begin_step(None)
            size = self.layout.page_size
            pages = torch.arange(sealed // size).expand(self.layout.num_heads, -1)
            return pages, size, *read_exactly(query, pages, size, reader, tail, scale)
        chosen = self.index.select(state, query.float() * scale, sealed, budget)
        reader.begin_step(max(budget, chosen.num_tokens))  # the yardstick `dense` reads beyond its budget
        if self.index.attends_on_host:
            tail = (tail[0].cpu(), tail[1].cpu())
            out, lse = self.index.attend(state, query.cpu(), chosen, reader, tail, scale)
            out, lse = out.to(query.device), lse.to(query.device)
        else:
            out, lse = self.index.attend(state, query, chosen, reader, tail, scale)
        return chosen.ids, chosen.unit, out, lse

    def begin_step(self, at: Attending) -> tuple[Run, int, Standing | None]:
        self.upkeep.catch_up()
        run, tokens = self.pages.begin_step()
        standing = None if self.watch is not None else self.rows.standing(at, self.upkeep.state, self._budget)
        if standing is not None:
            self.lookahead.begin_step()
            self.tokens_read = standing.counts.units * standing.unit + tokens
        return run, tokens, standing

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int | None:
        self.lookahead.begin_step()
        self._note_query(at.q, at.scale)
        if not self.rows.are_exact:
            at.out.copy_(self._attend(at.q, at.scale).view(-1))
            return None
        ids, unit, parts = self.rows.attend(rows, at, self.upkeep.state, self._budget, run)
        query = at.q.view(self.layout.num_heads, -1, self.layout.head_dim)
        out, lse = at.merged(parts) if self.watch is not None else (at.q, at.q)
        self._tell(query, at.scale, ids, unit, out, lse)
        return parts

    def end_page(self, at: Attending) -> None:
        self._note_query(at.q, at.scale)

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        if self.upkeep.indexed == self.pages.sealed > 0:
            self.lookahead.guess(query, self.upkeep.state, self._budget)

    @property
    def _budget(self) -> int:
        """Sealed tokens that a step reads."""
        tail_len = self.pages.tail_len
        return self.budget_of(self.pages.sealed + tail_len) - tail_len

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        self.pages.tail_len = tail_len

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        self.workspace.turns.require()
        self.lookahead.stop()
        self.upkeep.add(self.pages.seal(chain, tokens))

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        names, outs = iter(zip(chains, tokens, strict=True)), []
        for row in range(q.shape[1]):
            outs.append(self.step(q[:, row], k[:, row], v[:, row], scale))
            if self.pages.is_full:
                self.seal(*next(names))
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

    def export(self) -> dict[str, Tensor]:
        self.upkeep.catch_up()
        state = {f"index.{name}": tensor for name, tensor in self.upkeep.export().items()}
        return {"tail": self.pages.tail_copy(), **state}

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        name = f"{prefix}tail"
        count = num_tokens % self.layout.page_size
        check_kv(name, tensors.get(name), count, self.layout, self.workspace.dtype)
        return {name} | {name for name in tensors if name.startswith(f"{prefix}index.")}

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        self.pages.adopt(chains, tokens)
        if not (has_state and chains and self.upkeep.restore(tensors_under("index.", tensors))):
            self.upkeep.add_stored()
        self.pages.set_tail(tensors["tail"])

    # Points and copies

    def snapshot(self) -> LayerPoint:
        return LayerPoint(len(self.pages.pids), self.pages.tail_copy(), self.upkeep.snapshot())

    def rollback(self, point: LayerPoint) -> None:
        self.lookahead.stop()
        self.reader.truncate(point.num_pages * self.layout.page_size)
        self.pages.cut(point.num_pages)
        self.upkeep.rollback(point.upkeep)
        self.pages.set_tail(point.tail)

    def truncate(self, num_pages: int) -> None:
        point = self.snapshot()
        indexed = min(point.upkeep.indexed, num_pages * self.layout.page_size)
        self.rollback(LayerPoint(num_pages, point.tail[:, :, :0], point.upkeep._replace(indexed=indexed)))

    def follow(self, other: TieredLayer) -> None:
        self.pages.share(other.pages)
        self.upkeep.follow(other.upkeep)
        self.pages.set_tail(other.pages.tail_copy())

    def close(self) -> None:
        self.lookahead.stop()
        self.reader.close()
        self.pages.close()
        self.upkeep.close()

    # What evaluation and benchmarks look at

    @property
    def pids(self) -> np.ndarray:
        """Page ids of the sealed pages, int64, in order."""
        return self.pages.pids

    @property
    def sealed(self) -> int:
        """Tokens in sealed pages."""
        return self.pages.sealed

    @property
    def tail_len(self) -> int:
        """Tokens after them."""
        return self.pages.tail_len

    @property
    def tail(self) -> tuple[Tensor, Tensor]:
        """K and V `[G, tail_len, D]` of those, views; there is at least one."""
        return self.pages.tail

    @property
    def state(self) -> Any:
        """The index's state."""
        return self.upkeep.state

    @property
    def indexed(self) -> int:
        """Sealed tokens that it holds."""
        return self.upkeep.indexed


def tiered_layers(layers: Iterable[LayerKV]) -> list[TieredLayer]:
    """The tiered ones among `layers`, in order, for whoever looks at what an index chose or keeps."""
    return [layer for layer in layers if isinstance(layer, TieredLayer)]
