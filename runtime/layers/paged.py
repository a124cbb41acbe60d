"""Steps of a layer over pages that an index chooses from: its own (`tiered`), or those of another one (`sharing`).

Shapes  G KV heads, R query heads each (H = G*R), L page size, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.sinks import with_sinks
from ...retrieval.index import Part, Selection
from ...retrieval.reading import read_exactly
from .attend_rows import Attending
from .base import LayerKV
from .choices import Choices
from .device_reading import DeviceReading, departures
from .lookahead import Lookahead
from .page_reader import PageReader
from .pages import LayerPages
from .placed import Placed
from .prefetch import Prefetcher
from .standing import Standing
from .step import Step
from .tiered_rows import TieredRows
from .upkeep import IndexUpkeep
from .workspace import Workspace


class PagedLayer(LayerKV):
    """A layer whose steps read some of the pages there are, and the open one.

    Args:
        pages, upkeep: what it reads, and the index over that.
        reader: of these pages, its own.
        budget_of: the tokens that one step may read of a context of so many.
        prefetcher: brings up what look-ahead guesses; None: nothing is guessed.
        sinks: `[H]`, learned ones (`kernels.sinks`). They are part of the attention whatever an index chooses.
        placed: what a placement keeps of the text; None: there is no placement.
        choices: of the sequence's layers. part: which one this layer has in them.
    """

    is_paged: ClassVar[bool] = True

    def __init__(
        self, layer: int, pages: LayerPages, reader: PageReader, upkeep: IndexUpkeep, workspace: Workspace,
        budget_of: Callable[[int], int], prefetcher: Prefetcher | None, sinks: Tensor | None = None,
        placed: Placed | None = None, choices: Choices | None = None, part: Part = Part.ALONE,
    ) -> None:  # fmt: skip
        self.choices, self.part = choices or Choices(), part
        self.placed = placed
        self.layer, self.pages, self.reader, self.upkeep = layer, pages, reader, upkeep
        self.index, self.layout, self.workspace, self.budget_of = upkeep.index, pages.layout, workspace, budget_of
        self._sinks = sinks
        self.rows = TieredRows(pages, reader, upkeep.index)
        self.lookahead = Lookahead(pages, reader, upkeep.index, prefetcher)
        self.watch: Callable[[PagedLayer, Step], None] | None = None
        """Told of every step, for evaluation and tests."""

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
        if self.placed is not None and self.placed.chooses:
            ids, out, lse = self.placed.attend(query, tail, scale, reader)
            return ids, 1, out, lse
        budget, state = self.step_budget, self.upkeep.state
        if budget >= sealed:
            reader.begin_step(None)
            size = self.layout.page_size
            pages = torch.arange(sealed // size).expand(self.layout.num_heads, -1)
            return pages, size, *read_exactly(query, pages, size, reader, tail, scale)
        if self.part is Part.CHOOSES:
            reader.begin_step(None)
            rounds = self.choices.rounds
            out, lse, chosen = self.index.hand_on(state, query, sealed, budget, reader, tail, scale, rounds)
            self.choices.put(self.layer, sealed + self.pages.tail_len, chosen)
            return self.index.select(state, query, sealed, budget).ids, self.layout.page_size, out, lse
        chosen = self._choose(query.float() * scale, budget)
        reader.begin_step(max(budget, chosen.num_tokens))  # the yardstick `dense` reads beyond its budget
        if self.index.attends_on_host:
            tail = (tail[0].cpu(), tail[1].cpu())
            out, lse = self.index.attend(state, query.cpu(), chosen, reader, tail, scale)
            out, lse = out.to(query.device), lse.to(query.device)
        else:
            out, lse = self.index.attend(state, query, chosen, reader, tail, scale)
        return chosen.ids, chosen.unit, out, lse

    def _choose(self, query: Tensor, budget: int) -> Selection:
        """What a step with `query` `[G, R, D]` (fp32, scaled) reads of the sealed pages, which are more than `budget`
        tokens."""
        if self.part is Part.FOLLOWS:
            return self.choices.of(self.pages.sealed + self.pages.tail_len)
        return self.index.select(self.upkeep.state, query, self.pages.sealed, budget)

    def device_reading(self, budget: int, num_pages: int, *, waits: bool) -> DeviceReading | None:
        """What a step on the device reads, as long as it is current.

        Args:
            budget: in tokens, of this step and later ones. num_pages: of the sequence, for which callers have room.
            waits: the host may find it.

        Returns None where only `step` can be told: somebody watches, a placement chooses, nothing is sealed yet, the
        index cannot rank there, or not so many, or there is no room for what is chosen.
        """
        if self.watch is not None or self.placed is not None or not self.pages.sealed:
            return None
        self.upkeep.catch_up()
        ranking = self.index.ranking(self.upkeep.state)
        if ranking is None or ranking.room * ranking.unit < self.pages.sealed:
            return None
        most = (budget if self.index.has_budget else num_pages * self.layout.page_size) // ranking.unit
        each, rebuilding = [most], ranking.rebuilding
        if rebuilding is not None:
            each = [*rebuilding.most(self.pages.sealed // ranking.unit, most)]
        departed = departures(self.pages)
        found = [self.reader.step_pages(ranking.unit, each[0], waits=waits)]
        if rebuilding is not None:
            found.append(self.reader.step_pages(rebuilding.unit, each[1], waits=waits, values_alone=True))
        known = [pages for pages in found if pages is not None]
        if len(known) < len(found):
            return None
        return DeviceReading(self.pages, self.upkeep, ranking, known, each, num_pages, departed)

    def note_read(self, reading: DeviceReading, counts: list[int]) -> None:
        """The device was told to read so many units of each head of what was found."""
        tokens = 0
        for pages, count in zip(reading.found, counts, strict=True):
            pages.note(count)
            tokens += count * pages.unit
        self.reader.note_read()
        self.tokens_read = tokens + self.pages.tail_len

    def _standing(self, at: Attending) -> Standing | None:
        """As `begin_step` gives it, of pages where the new token is counted in."""
        if self.watch is not None or self._waits_for_query:
            return None
        standing = self.rows.standing(at, self.upkeep.state, self.step_budget)
        if standing is not None:
            self.lookahead.begin_step()
            self.tokens_read = standing.counts.units * standing.unit + self.pages.tail_len
        return standing

    @property
    def _waits_for_query(self) -> bool:
        """Whether what a step reads is not in rows, or its query is looked at."""
        return self.placed is not None and (self.placed.chooses or self.placed.watches_steps)

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int | None:
        self.lookahead.begin_step()
        is_chosen_for = self.placed is not None and self.placed.chooses
        if is_chosen_for or self.part is Part.CHOOSES or not self.rows.are_exact:
            at.out.copy_(self._attend(at.q, at.scale).view(-1))
            return None
        ids, unit, parts = self.rows.attend(rows, at, self.upkeep.state, self.step_budget, run, self._choose)
        query = at.q.view(self.layout.num_heads, -1, self.layout.head_dim)
        out, lse = at.merged(parts) if self.watch is not None else (at.q, at.q)
        self._tell(query, at.scale, ids, unit, out, lse)
        return parts

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        if self.placed is not None and self.placed.is_visible:
            return
        if self.part is Part.FOLLOWS:
            if self.choices.newest is not None:
                self.lookahead.bring(self.choices.newest)
        elif self.part is Part.ALONE and self.upkeep.indexed == self.pages.sealed > 0:
            self.lookahead.guess(query, self.upkeep.state, self.step_budget)

    @property
    def step_budget(self) -> int:
        """Sealed tokens that a step reads: of a text that a placement has kept whole, all."""
        if self.placed is not None and self.placed.is_visible:
            return self.pages.sealed
        tail_len = self.pages.tail_len
        return self.budget_of(self.pages.sealed + tail_len) - tail_len

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


def paged_layers(layers: Iterable[LayerKV]) -> list[PagedLayer]:
    """Those of `layers` whose steps an index chooses for, in order."""
    return [layer for layer in layers if isinstance(layer, PagedLayer)]
