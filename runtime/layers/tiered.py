"""The KV of one layer of one sequence, and attention over it.

`TieredLayer` is where a page id meets a tier: sealed pages live in the store, are found by an index and
fetched by a `PageReader`; the last, unsealed page (the *tail*) is open in the compute tier. The small state of a
sliding-window layer is kept by `sliding.SlidingLayer`.

    position  0 ............ sealed ............ | tail | new rows of a prefill span
              pages in the store, any tier         open    span buffer in the workspace

Both answer `extend` (prefill: many queries, exact) and `step` (decode: one query). What a result is
computed from depends only on positions, never on where pages lie: row chunks and key blocks sit on
a fixed grid, so that spilling changes no bit.

A page is published (`finish`, `seal`) only by whoever has held the model's turn without a break since its rows began
to arrive, and only when all of them have: buffers are shared, and what another caller wrote there would be stored for
good under these tokens' name.

Shapes  G KV heads, R query heads each (H = G*R), L page size, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.merge_states import merge_states
from ...kernels.prefill_attention import prefill_attention
from ...retrieval.index import Index, spread_pages
from ...retrieval.reading import read_exactly
from ...retrieval.stored import Geometry
from ...storage import OpenPage, PageLayout, TieredStore
from ..api.errors import ConversationError
from .base import LayerKV
from .lookahead import Lookahead
from .page_queries import PageQueries
from .page_reader import PageReader, Recover
from .prefetch import Prefetcher
from .step import Step
from .stored import check_kv, is_sound_state, tensors_under
from .workspace import KEY_BLOCK, Workspace

PUT_PAGES = 64
"""Pages handed to the store at a time: bounds the copy that lays them out."""
_NO_PIDS = np.empty(0, dtype=np.int64)


class LayerPoint(NamedTuple):
    """What a layer held at some point of its sequence."""

    num_pages: int
    tail: Tensor
    """`[2, G, n, D]`, a copy."""
    state: Any
    """The index's state, not a copy: those are only added to."""
    indexed: int
    """Tokens it held."""
    learned: Any
    """`Index.learned_by` of it."""


LEARNED_EVERY = 512
"""A prefill of at least this many tokens leaves what an index learned: it is as large as the KV of some hundred."""


class TieredLayer(LayerKV):
    """A full-attention layer.

    Args:
        budget_of: the tokens that one step may read of a context of so many.
        recover: recomputes damaged pages.
        repeats: query heads per KV head.
        prefetcher: brings up what look-ahead guesses; None: nothing is guessed.
        keep_queries: also keep the queries that indexes learn from, for `follow`ers with another index.
    """

    is_paged: ClassVar[bool] = True

    def __init__(
        self, layer: int, store: TieredStore, index: Index, workspace: Workspace, budget_of: Callable[[int], int],
        recover: Recover, *, repeats: int, prefetcher: Prefetcher | None = None, keep_queries: bool = False,
    ) -> None:  # fmt: skip
        self.layer, self.store, self.index, self.workspace = layer, store, index, workspace
        self.layout: PageLayout = store.layout
        self.budget_of, self.recover, self.repeats = budget_of, recover, repeats
        self.lookahead = Lookahead(store, layer, index, prefetcher)
        self.pids = _NO_PIDS
        self.tail_len = 0
        self.state: Any = None
        self.indexed = 0
        self.watch: Callable[[TieredLayer, Step], None] | None = None
        self.queries = PageQueries(self.layout.num_heads, used=index.uses_queries)
        self.queries.kept = [] if keep_queries else None
        self._tail: OpenPage | None = None
        self._dtype = workspace.dtype
        self._turn = self._arrived = 0

    @property
    def sealed(self) -> int:
        return len(self.pids) * self.layout.page_size

    # Prefill

    def begin(self) -> None:
        """Start a span, which ends in the same turn: the tail's tokens go first in the span buffer."""
        self.workspace.turns.require()
        self._turn, self._arrived = self.workspace.turns.number, 0
        self.queries.drop(self._num_unindexed)
        if self.tail_len:
            self.span_rows(0, self.tail_len)[:] = self._tail_kv()[:, :, : self.tail_len]

    def span_rows(self, first: int, count: int) -> Tensor:
        """Where K and V of the span's rows `first .. first + count` belong, `[2, G, count, D]`: those that come next.
        Raises ConversationError if another call has come between, or rows are left out."""
        self.workspace.turns.require()
        if self._turn != self.workspace.turns.number or first != self._arrived:
            raise ConversationError("another call came between the parts of a prefill; nothing of it is kept")
        self._arrived += count
        return self.workspace.span[:, :, first : first + count]

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        """Exact causal attention of rows `start ..`; q `[H,T,D]`, k and v `[G,T,D]`, rotated."""
        rows = self.span_rows(start - self.sealed, q.shape[1])
        rows[0], rows[1] = k, v
        if self.queries.is_wanted:
            self.queries.note(q[:, -(start + 1) % self.layout.page_size :: self.layout.page_size], scale)
        return self.attend(q, k, v, start, scale)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        """Rows `start ..` against all keys before them, block by block, and against themselves."""
        out, lse = prefill_attention(q, k, v, scale=scale, causal=True)
        outs, lses = [out], [lse]
        for begin in range(0, start, KEY_BLOCK):
            keys, values = self.block(begin, min(begin + KEY_BLOCK, start))
            out, lse = prefill_attention(q, keys.to(q.dtype), values.to(q.dtype), scale=scale, causal=False)
            outs.append(out)
            lses.append(lse)
        return merge_states(outs, lses)[0]

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        """End a span of which the buffer holds `length` tokens: seal whole pages, keep the rest open.

        Args:
            chains: chain hash of each whole page. tokens: uint32 `[pages, L]`.

        Raises:
            ConversationError: the span is not whole, or not this turn's; nothing was published.
            CapacityError: the tiers are full.
        """
        self.span_rows(length, 0)
        size, span = self.layout.page_size, self.workspace.span
        whole = len(chains) * size
        for first in range(0, len(chains), PUT_PAGES):
            some = slice(first, first + PUT_PAGES)
            kv = span[:, :, first * size : min(whole, (first + PUT_PAGES) * size)]
            pages = kv.reshape(2, kv.shape[1], -1, size, kv.shape[3]).permute(2, 1, 0, 3, 4).flatten(1)
            pids = self.store.put(self.layer, chains[some], tokens[some], pages.view(torch.uint8))
            self.pids = np.concatenate([self.pids, pids])
        if whole and not self.index.learns:
            self._index(span[0, :, :whole])
        self.tail_len = 0
        if length > whole:
            self._open_tail()[:, :, : length - whole] = span[:, :, whole:length]
            self.tail_len = length - whole
        else:
            self._drop_tail()

    # Decode

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one new token; q `[H,D]`, k and v `[G,D]`, rotated. Returns `[H,D]`."""
        self.workspace.turns.require()
        self.end_prefill()  # does something only after a prefill that was interrupted
        tail = self._open_tail()
        tail[0, :, self.tail_len] = k
        tail[1, :, self.tail_len] = v
        self.tail_len += 1
        query = q.view(self.layout.num_heads, -1, self.layout.head_dim)
        if self.queries.is_wanted and self.is_full:
            self.queries.drop(0)
            self.queries.note(q.unsqueeze(1), scale)
        ids, unit, out, lse = self._attend_chosen(query, scale)
        self.tokens_read = (ids.shape[1] * unit if ids is not None else 0) + self.tail_len
        if self.watch is not None:  # the query is a copy: a graph may write there again (`captured`)
            self.watch(self, Step(query.clone(), scale, None if ids is None else ids.cpu().numpy(), unit, out, lse))
        return out.reshape(q.shape)

    def _attend_chosen(self, query: Tensor, scale: float) -> tuple[Tensor | None, int, Tensor, Tensor]:
        """Unit ids `[G, n]` (None when nothing is sealed yet), tokens per unit, out and lse."""
        tail, size = self.tail, self.layout.page_size
        self.lookahead.begin_step()
        if not self.sealed:
            return None, 1, *decode_attention(query, [tail], scale=scale)
        budget = self._budget
        if budget >= self.sealed:
            pages = torch.arange(len(self.pids)).expand(self.layout.num_heads, -1)
            return pages, size, *read_exactly(query, pages, size, self._reader(), tail, scale)
        scaled = query.float() * scale
        chosen = self.index.select(self.state, scaled, self.sealed, budget)
        reader = self._decode_reader(max(budget, chosen.num_tokens))  # the yardstick `dense` reads beyond its budget
        if self.index.attends_on_host:
            tail = (tail[0].cpu(), tail[1].cpu())
            out, lse = self.index.attend(self.state, query.cpu(), chosen, reader, tail, scale)
            out, lse = out.to(query.device), lse.to(query.device)
        else:
            out, lse = self.index.attend(self.state, query, chosen, reader, tail, scale)
        return chosen.ids, chosen.unit, out, lse

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        """Bring up what the step will read when it comes here, if its query is like `query()` `[G, R, D]`, rotated and
        scaled, fp32."""
        if self.indexed == self.sealed > 0:
            self.lookahead.guess(query, self.state, self._reader(), self._budget)

    @property
    def _budget(self) -> int:
        """Sealed tokens that a step reads."""
        return self.budget_of(self.sealed + self.tail_len) - self.tail_len

    def _reader(self) -> PageReader:
        return PageReader(self.store, self.workspace, self.pids, self.recover)

    def _decode_reader(self, budget: int) -> PageReader:
        if self.index.attends_on_host:
            return PageReader(self.store, self.workspace.on_host, self.pids, self.recover, promote=False)
        rows = lambda unit, sides: self.lookahead.rows(unit, sides, budget, len(self.pids))  # noqa: E731
        return PageReader(self.store, self.workspace, self.pids, self.recover, rows=rows)

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        """Forget a step that did not complete: back to `num_tokens`, of which the tail held some."""
        self.tail_len = tail_len

    @property
    def is_full(self) -> bool:
        return self.tail_len == self.layout.page_size

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        """The tail is a whole page: hand it to the store and index it."""
        self.workspace.turns.require()
        assert self._tail is not None
        assert self.is_full
        self.lookahead.stop()
        keys = self._tail_kv()[0].clone()
        pid = self.store.seal(self._tail, chain, tokens)
        self._tail, self.tail_len = None, 0
        self.pids = np.append(self.pids, pid)
        self._index(keys)

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        names, outs = iter(zip(chains, tokens, strict=True)), []
        for row in range(q.shape[1]):
            outs.append(self.step(q[:, row], k[:, row], v[:, row], scale))
            if self.is_full:
                self.seal(*next(names))
        return torch.stack(outs, 1)

    # Blocks of pages

    def block(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """K and V `[G, end-begin, D]` by position, from the store, the span buffer, or both.

        Good until the next read of this or another layer."""
        size, sealed, span = self.layout.page_size, self.sealed, self.workspace.span
        if begin >= sealed:
            here = span[:, :, begin - sealed : end - sealed]
            return here[0], here[1]
        pages = np.arange(begin // size, min(end, sealed) // size)
        keys, values = self._reader().pages(pages)
        if end <= sealed:
            return keys, values
        rest = span[:, :, : end - sealed]
        return torch.cat([keys, rest[0].to(keys.dtype)], 1), torch.cat([values, rest[1].to(keys.dtype)], 1)

    # Tail and index

    @property
    def tail(self) -> tuple[Tensor, Tensor]:
        """K and V `[G, tail_len, D]` of the unsealed tokens, views; there is at least one."""
        kv = self._tail_kv()[:, :, : self.tail_len]
        return kv[0], kv[1]

    def _tail_kv(self) -> Tensor:
        """The open page as `[2, G, L, D]`."""
        assert self._tail is not None
        shape = (self.layout.num_heads, 2, self.layout.page_size, self.layout.head_dim)
        return self._tail.bytes.view(self._dtype).view(shape).transpose(0, 1)

    def _open_tail(self) -> Tensor:
        if self._tail is None:
            self._tail = self.store.open_page(self.layer)
        return self._tail_kv()

    def _drop_tail(self) -> None:
        if self._tail is not None:
            self.store.discard(self._tail)
        self._tail, self.tail_len = None, 0

    def _index(self, keys: Tensor) -> None:
        """Index the keys `[G, n, D]` of pages that were just sealed, with the queries noted for them."""
        queries = self.queries.take(self._num_unindexed)
        if self.indexed:
            self.index.append(self.state, keys, queries)
        else:
            self.state = self.index.build(keys, queries)
        self.indexed += keys.shape[1]
        if self.index.is_outgrown(self.state):
            self._index_anew()

    def end_prefill(self) -> None:
        """An index that learns takes in all that was sealed, at once. What it learns, and so what
        decode reads, must not depend on how the caps cut prefill into spans."""
        if self.indexed == self.sealed:
            return
        queries = self.queries.take(self._num_unindexed)
        if self.indexed:
            self._append_stored(queries)
        else:
            self._index_anew(queries)

    @property
    def _num_unindexed(self) -> int:
        """Pages that are sealed and not indexed yet."""
        return (self.sealed - self.indexed) // self.layout.page_size

    def _index_stored(self, queries: Tensor | None = None) -> None:
        """Index sealed pages that are not indexed yet, reading their keys once. Their queries are not known, except
        that an index that is new here may be given those of all pages."""
        self.queries.forget()
        if self.indexed:
            self._append_stored()
        else:
            self._index_anew(queries)

    def _append_stored(self, queries: Tensor | None = None) -> None:
        """Append sealed pages that are not indexed yet, and their queries `[G, R, pages, D]`."""
        start, size = self.indexed, self.layout.page_size
        for begin in range(start, self.sealed, KEY_BLOCK):
            end = min(begin + KEY_BLOCK, self.sealed)
            some = None if queries is None else queries[:, :, (begin - start) // size : (end - start) // size]
            self.index.append(self.state, self.block(begin, end)[0], some)
        self.indexed = self.sealed
        if self.index.is_outgrown(self.state):
            self._index_anew()

    def _index_anew(self, queries: Tensor | None = None) -> None:
        """Fit on a sample of all sealed pages, and of their `queries` `[G, R, pages, D]` where those are known, and
        append every key again, read from the store."""
        if not self.sealed:
            return
        size = self.layout.page_size
        pages = spread_pages(len(self.pids), size).numpy()
        blocks = [pages[at : at + KEY_BLOCK // size] for at in range(0, len(pages), KEY_BLOCK // size)]
        keys = torch.cat([self._reader().pages(block)[0].clone() for block in blocks], 1)
        positions = torch.from_numpy((pages[:, None] * size + np.arange(size)).reshape(-1)).to(keys.device)
        sampled = None if queries is None else queries[:, :, torch.from_numpy(pages).to(queries.device)]
        state = self.index.fit(keys, positions, sampled, self.state)
        for begin in range(0, self.sealed, KEY_BLOCK):
            self.index.append(state, self.block(begin, min(begin + KEY_BLOCK, self.sealed))[0])
        self.state, self.indexed = state, self.sealed

    # Copies

    def tail_copy(self) -> Tensor:
        """The tail's K and V `[2, G, tail_len, D]`, a copy."""
        if not self.tail_len:
            shape = (2, self.layout.num_heads, 0, self.layout.head_dim)
            return torch.empty(shape, dtype=self._dtype)
        return self._tail_kv()[:, :, : self.tail_len].contiguous().clone()

    def set_tail(self, kv: Tensor) -> None:
        self._drop_tail()
        if kv.shape[2]:
            self._open_tail()[:, :, : kv.shape[2]] = kv
            self.tail_len = kv.shape[2]

    def snapshot(self) -> LayerPoint:
        learned = self.index.learned_by(self.state) if self.indexed else None
        return LayerPoint(len(self.pids), self.tail_copy(), self.state, self.indexed, learned)

    def rollback(self, point: LayerPoint) -> None:
        """Back to an earlier snapshot of this layer."""
        count, tail = point.num_pages, point.tail
        self.lookahead.truncate(count * self.layout.page_size)
        self.store.release(self.pids[count:])
        self.pids = self.pids[:count]
        if point.indexed:
            self.state = point.state  # another one if it has been outgrown since
            self.index.truncate(self.state, point.indexed)
            self.index.unlearn(self.state, point.learned)
        self.indexed = point.indexed
        self.queries.drop(self._num_unindexed)
        self.queries.truncate(count)
        self.set_tail(tail)

    def truncate(self, num_pages: int) -> None:
        point, tokens = self.snapshot(), num_pages * self.layout.page_size
        self.rollback(
            point._replace(num_pages=num_pages, tail=point.tail[:, :, :0], indexed=min(point.indexed, tokens))
        )

    def learned(self) -> dict[str, Tensor]:
        """What the index learned here, without what it holds of the tokens: for `adopt`."""
        state = self.index.copy(self.state)
        self.index.truncate(state, 0)
        return self.index.export(state)

    def follow(self, other: TieredLayer) -> None:
        """Take on `other`'s past: its pages are shared, its tail is copied, and so is its index state
        if the index is the same one; another index is built from the pages' keys, and from their queries where
        `other` kept them."""
        self.store.retain(other.pids)
        self.pids = other.pids.copy()
        if self.index is other.index and other.indexed:
            self.state, self.indexed = self.index.copy(other.state), other.indexed
        self._index_stored(other.queries.all_kept() if self.index.uses_queries else None)
        self.set_tail(other.tail_copy())

    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        """As in `LayerKV`; reads the pages' keys once. What an index learned is taken from `left` if it is there."""
        learned = tensors_under(f"{self.layer}.", left)
        is_sound = bool(learned) and is_sound_state(self.index, self.layer, learned, self._geometry(0))
        self._drop_tail()
        pids = self.store.adopt(self.layer, chains, tokens)
        self.pids = np.concatenate([self.pids, pids])
        if is_sound and not self.indexed:
            self.state = self._restored(learned)
            self._append_stored()
        else:
            self._index_stored()

    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        if not self.index.uses_queries or num_computed < LEARNED_EVERY:
            return {}
        return {f"{self.layer}.{name}": tensor for name, tensor in self.learned().items()}

    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        """What `leave` gives saves learning, no more: `adopt` looks at it."""

    def export(self) -> dict[str, Tensor]:
        self.end_prefill()
        state = self.index.export(self.state) if self.indexed else {}
        return {"tail": self.tail_copy(), **{f"index.{name}": t.clone() for name, t in state.items()}}

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        name = f"{prefix}tail"
        check_kv(name, tensors.get(name), num_tokens % self.layout.page_size, self.layout, self._dtype)
        return {name} | {name for name in tensors if name.startswith(f"{prefix}index.")}

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        state, sealed = tensors_under("index.", tensors), len(chains) * self.layout.page_size
        if has_state and chains and is_sound_state(self.index, self.layer, state, self._geometry(sealed)):
            self.pids = self.store.adopt(self.layer, chains, tokens)
            self.state, self.indexed = self._restored(state), self.sealed
        else:
            self.adopt(chains, tokens, num_tokens, {})
        self.set_tail(tensors["tail"])

    def _geometry(self, num_tokens: int) -> Geometry:
        return Geometry(self.workspace.span[0, :, :0], num_tokens, self.repeats)

    def _restored(self, state: dict[str, Tensor]) -> Any:
        device = self.workspace.span.device
        return self.index.restore({name: tensor.to(device) for name, tensor in state.items()})

    def close(self) -> None:
        self.lookahead.close()
        self._drop_tail()
        self.store.release(self.pids)
        self.pids, self.state, self.indexed = _NO_PIDS, None, 0


def tiered_layers(layers: Iterable[LayerKV]) -> list[TieredLayer]:
    """The tiered ones among `layers`, in order, for whoever looks at what an index chose or keeps."""
    return [layer for layer in layers if isinstance(layer, TieredLayer)]
