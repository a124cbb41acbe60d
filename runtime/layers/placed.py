"""What a placement knows of one layer of one sequence, and the tokens it keeps (`retrieval.placement`).

    prompt  extend, extend, ... -> end_prefill -> place      place: once all layers have said what they wish
    reply   note -> (seal)                                   a whole page at a time

All of its tensors are made anew when they change, so a point to go back to is what `snapshot` holds on to.

Shapes  G KV heads, R query heads each (H = G*R), m columns: tokens that are kept, D head dim.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...retrieval.placement import EVERY, Placement, Rows, State
from ...retrieval.reading import Run
from ...retrieval.stored import Geometry
from .kept import Block, Kept, KeptText, check_kept, exported, kept_of
from .page_reader import PageReader
from .pages import LayerPages
from .ragged import read_ragged, with_rest
from .workspace import KEY_BLOCK

logger = logging.getLogger(__name__)


class Placed:
    """A placement's work on one layer of one sequence.

    Args:
        is_visible: steps read what is kept, and nothing else.
        of: the layer's geometry, with no token.
    """

    def __init__(
        self, placement: Placement, pages: LayerPages, reader: PageReader, of: Geometry, *, is_visible: bool
    ) -> None:
        self.placement, self.is_visible = placement, is_visible
        self._pages, self._reader, self._of = pages, reader, of
        self.kept = self._nothing()

    def _nothing(self) -> Kept:
        keys, wide = self._of.keys.float(), self._pages.layout.value_dim
        none = torch.empty((self._of.groups, 0), dtype=torch.int64, device=keys.device)
        start = {
            name: tensor.to(keys.device)
            for name, tensor in self.placement.start(keys, keys[..., : wide or keys.shape[2]]).items()
        }
        state = {**self.placement.enter(keys, keys, none[0]), **start}
        return Kept(none, state, True, 0, None, 0, 0, None, ())

    @property
    def watches_steps(self) -> bool:
        """Whether each step's query must be noted."""
        return self.placement.prunes and self.placement.rows != 0

    @property
    def chooses(self) -> bool:
        """Whether steps read what is kept: there is something else."""
        return self.is_visible and not self.kept.is_whole

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it occupies."""
        return self.kept.positions.nbytes + sum(tensor.nbytes for tensor in self.kept.state.values())

    # A prompt

    def begin_span(self) -> None:
        """A span of a prompt begins: what it follows is all that has come."""
        self._reach(self._pages.sealed + self._pages.tail_len)
        self._observe_steps()
        self.kept = self.kept._replace(prompt=0)

    def extend(self, q: Tensor, lse: Tensor, start: int, scale: float, rest: Block) -> None:
        """Take in the next rows of a prompt, q `[H, T, D]`, whose exact attention gave lse `[H, T]`; `rest` has their
        keys and values."""
        first = start - self._pages.sealed
        self._enter(*rest(first, first + q.shape[1]), start)
        queries = self._by_group(q, scale)
        if self.placement.rows == EVERY:
            self._observe(queries, start, rest, lse.view(queries.shape[:3]) if self.kept.is_whole else None)
        elif self.placement.rows:
            last = queries if self.kept.last is None else torch.cat([self.kept.last, queries], 2)
            self.kept = self.kept._replace(last=last[:, :, -self.placement.rows :])

    def compare(self, cosines: Tensor) -> None:
        """What the layer made of the hidden states of those rows, as `Placement.compare` has it."""
        self._change(self.placement.compare(self.kept.state, cosines))

    def end_prefill(self) -> None:
        """All of a prompt is here: see what its last rows attend to."""
        last, self.kept = self.kept.last, self.kept._replace(last=None)
        if last is not None:
            self._observe(last, self.kept.end - last.shape[2], self._tail)

    def read(self, tokens: np.ndarray) -> None:
        """Which tokens they are, all so far, `[n]`."""
        if self.placement.reads:
            ids = torch.from_numpy(tokens.astype(np.int64)).to(self.kept.positions.device)
            self._change(self.placement.read(self.kept.state, ids[self.kept.positions.clamp(min=0)]))

    def wish(self) -> Tensor:
        """What `Placement.divide` is told of this layer."""
        return self.placement.wish(self.kept.state, self._text(self._tail))

    def place(self, budget: int, length: int) -> None:
        """Keep `budget` tokens of each head from now on, or such a share of a text of `length` tokens; 0: no share. The
        unsealed tail stays, and counts."""
        self.kept = self.kept._replace(budget=budget, length=length, prompt=self.kept.end)
        self._prune(budget)

    def _prune(self, budget: int) -> None:
        text = self._text(self._tail)
        chosen = self.placement.keep(self.kept.state, text, budget)
        chosen |= text.positions >= self._pages.sealed
        self._change(self.placement.leave(self.kept.state, text, chosen))
        self._take(chosen)
        if not self.is_visible:
            self._pages.rank(self._cold(budget).cpu().numpy())

    # A reply

    def note(self, q: Tensor, scale: float) -> None:
        """The next step's query `[H, D]`."""
        if self.watches_steps:
            self.kept = self.kept._replace(steps=(*self.kept.steps, self._by_group(q.unsqueeze(1), scale)))

    def undo_step(self, tail_len: int) -> None:
        """Forget the query of a step that failed, whether it was noted or not: `tail_len` tokens are left."""
        count = self._pages.sealed + tail_len - self.kept.end
        self.kept = self.kept._replace(steps=self.kept.steps[: max(0, count)])

    def seal(self) -> None:
        """A page is sealed: its tokens have columns now, and if a reply keeps to a budget, the least of all go."""
        self._reach(self._pages.sealed)
        self._observe_steps()
        if self.placement.prunes and self.kept.budget is not None:
            budget, length = self.kept.budget, self.kept.length
            self._prune(-(-budget * self.kept.end // length) if length else budget)

    def _observe_steps(self) -> None:
        """All tokens have columns: look at the queries of those that a reply brought."""
        steps, self.kept = self.kept.steps, self.kept._replace(steps=())
        if steps:
            self._observe(torch.cat(steps, 2), self.kept.end - len(steps), self._tail)

    def attend(
        self, query: Tensor, tail: Run, scale: float, reader: PageReader
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Attend with `[G, R, D]` to the sealed tokens that are kept, and the tail; `reader` is the asking layer's.
        Returns their ids `[G, n]`, out and lse."""
        ids = self.kept.positions[:, : self._num_sealed]
        reader.begin_step(ids.shape[1])
        out, lse = read_ragged(query, ids, reader, tail, scale)
        rest = self.placement.rest(self.kept.state)
        return ids, *((out, lse) if rest is None else with_rest(query, out, lse, rest, scale))

    # What sessions keep

    def export(self) -> dict[str, Tensor]:
        """Everything as tensors, copies."""
        return exported(self.kept)

    def restore(self, tensors: Mapping[str, Tensor], num_tokens: int) -> None:
        """Be what `export` gave, if it is sound; it may come from anywhere. Otherwise, and where there is nothing, all
        `num_tokens` tokens are kept. Pages are there already."""
        nothing = self._nothing()
        try:
            check_kept(tensors, num_tokens, nothing, self.placement, self._of, self._pages.layout.page_size)
        except ValueError as error:
            if tensors:
                logger.warning("layer %d: what was kept is not known, so all of it is: %s", self._pages.layer, error)
            self.kept = nothing
            self._reach(num_tokens)
            return
        self.kept = kept_of({name: tensor.to(self._of.keys.device) for name, tensor in tensors.items()})

    # Points and copies

    def adopt(self) -> None:
        """Pages that the store had have come in the place of the tail. Nobody knows how their queries attended."""
        self._reach(self._pages.sealed)

    def truncate(self, num_tokens: int) -> None:
        """Keep what is kept of the first `num_tokens` tokens, whole pages."""
        is_whole = self.kept.is_whole
        self._take((self.kept.positions >= 0) & (self.kept.positions < num_tokens))
        end, prompt = min(self.kept.end, num_tokens), min(self.kept.prompt, num_tokens)
        self.kept = self.kept._replace(is_whole=is_whole, end=end, prompt=prompt, last=None, steps=())

    def follow(self, other: Placed | None, rows: list[Tensor] | None, cosines: Sequence[Tensor] = ()) -> None:
        """Know of the same pages what `other` knows, if it is of the same placement. Otherwise look at all of the text
        as if it came now, with the queries `rows` of all of it, `[G, R, n, D]` each, and its `cosines`, where they are
        known."""
        if other is not None and other.placement is self.placement:
            self.kept = other.kept
            return
        self._reach(self._pages.sealed + self._pages.tail_len)
        if cosines:
            self.compare(torch.cat(list(cosines)))
        if rows is None or not self.placement.rows:
            return
        queries = torch.cat(rows, 2)
        first = 0 if self.placement.rows == EVERY else max(0, queries.shape[2] - self.placement.rows)
        self._observe(queries[:, :, first:], first, self._tail)

    # Columns

    @property
    def _num_sealed(self) -> int:
        """Columns of sealed tokens: the first ones, since nothing after the pages is ever dropped."""
        return self.kept.positions.shape[1] - max(0, self.kept.end - self._pages.sealed)

    def _text(self, rest: Block) -> KeptText:
        prompt = self.kept.prompt or self.kept.end
        return KeptText(self.kept.positions, prompt, self._num_sealed, self.kept.is_whole, self._reader, rest)

    def _tail(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = self._pages.tail
        return keys[:, begin:end], values[:, begin:end]

    def _by_group(self, q: Tensor, scale: float) -> Tensor:
        """Queries `[H, n, D]` as fp32 `[G, R, n, D]`, scaled; a copy."""
        return q.float().reshape(self._of.groups, -1, *q.shape[1:]) * scale

    def _observe(self, queries: Tensor, start: int, rest: Block, lse: Tensor | None = None) -> None:
        self._change(self.placement.observe(self.kept.state, Rows(queries, start, self._text(rest), lse)))

    def _change(self, state: State) -> None:
        self.kept = self.kept._replace(state={**self.kept.state, **state})

    def _enter(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Columns for the next tokens, at positions `start ..`."""
        positions = torch.arange(start, start + keys.shape[1], device=keys.device)
        new = self.placement.enter(keys.float(), values.float(), positions)
        state = {
            name: torch.cat([tensor, new[name]], 1) if name in self.placement.columns else tensor
            for name, tensor in self.kept.state.items()
        }
        positions = torch.cat([self.kept.positions, positions.expand(self._of.groups, -1)], 1)
        self.kept = self.kept._replace(positions=positions, state=state, end=start + keys.shape[1])

    def _reach(self, end: int) -> None:
        """Columns for the tokens before `end`, and for no other ones."""
        if self.kept.end > end:
            self.truncate(end)
        sealed, size = self._pages.sealed, self._pages.layout.page_size
        self._reader.begin_step(None)
        while self.kept.end < min(end, sealed):
            first = self.kept.end
            begin = first // size * size
            keys, values = self._reader.block(begin, min(begin + KEY_BLOCK // size * size, sealed))
            self._enter(keys[:, first - begin :], values[:, first - begin :], first)
        if end > self.kept.end:
            self._enter(*self._tail(self.kept.end - sealed, end - sealed), self.kept.end)

    def _take(self, chosen: Tensor) -> None:
        """Keep these columns, bool `[G, m]`, and no others."""
        if bool(chosen.all()):
            return
        most = int(chosen.sum(1).max()) if chosen.numel() else 0
        order = chosen.to(torch.int8).sort(dim=1, stable=True).indices[:, chosen.shape[1] - most :]
        positions = self.kept.positions.gather(1, order).masked_fill(~chosen.gather(1, order), -1)
        state = {
            name: _columns(tensor, order) if name in self.placement.columns else tensor
            for name, tensor in self.kept.state.items()
        }
        self.kept = self.kept._replace(positions=positions, state=state, is_whole=False)

    def _cold(self, budget: int) -> Tensor:
        """The sealed pages to which `budget` tokens do not reach, bool `[pages]`: a page holds all heads, so those come
        first of which most tokens are kept, over all of them; of equals the latest."""
        sealed, size = self.kept.positions[:, : self._num_sealed], self._pages.layout.page_size
        pages = sealed[sealed >= 0].div(size, rounding_mode="floor")
        held = torch.bincount(pages, minlength=self._pages.sealed // size)
        cold = torch.ones_like(held, dtype=torch.bool)
        best = held.flip(0).sort(descending=True, stable=True).indices[: -(-budget // size)]
        cold[len(held) - 1 - best] = False
        return cold


def _columns(tensor: Tensor, order: Tensor) -> Tensor:
    """The columns `order` `[G, m']` of `[G, m, ..]`."""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], order]
