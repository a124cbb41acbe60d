"""Layers without keys of their own: they attend to what another layer of the same sequence keeps, their source.

A page of such a layer is its source's page. It keeps nothing, so there is nothing of it to seal, store, go back to or
copy; what the source holds when it is asked is what it reads. The source comes first in everything: at a step it has
the new token, and after a span of a prompt all of its rows.

    prefill   extend            the last rows of a prompt alone, once the source has all of it: nothing else depends on
                                what these layers make of the others
    decode    step              the source's pages by its index, with queries of this layer; or its window
    known     extend_known      tokens of the source's open page, each of which sees those before it

Shapes      G KV heads, H query heads, T rows, D head dim. k and v have no heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...retrieval.index import Part
from .attend_rows import Attending
from .base import LayerKV
from .page_reader import PageReader, Recover
from .paged import PagedLayer
from .sliding import SlidingLayer, StandingWindow
from .span import attend_exactly
from .standing import Run, Standing
from .workspace import KEY_BLOCK


class Sharing(LayerKV):
    """What layers without keys have in common: nothing that anybody could keep."""

    is_paged: ClassVar[bool] = True

    def begin(self) -> None:
        """Rows of a span are the source's."""

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        """There are no pages to publish."""

    def compare(self, before: Tensor, after: Tensor) -> None:
        """There is no placement to tell."""

    def end_prefill(self) -> None:
        """There is nothing to learn."""

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        """What is near is the source's to say."""

    def end_page(self, at: Attending) -> None:
        """Indexes learn from the source's queries."""

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        """The token is the source's."""

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        """The page is the source's."""

    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        return {}

    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        """Nothing is needed."""

    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        """The source does."""

    def export(self) -> dict[str, Tensor]:
        return {}

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        return set()

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        """The source is restored."""

    def snapshot(self) -> Any:
        return None

    def rollback(self, point: Any) -> None:
        """The source goes back."""

    def truncate(self, num_pages: int) -> None:
        """The source is cut."""

    def follow(self, other: Any) -> None:
        """The source follows."""

    def close(self) -> None:
        """There is nothing to give up."""


class SharingPages(Sharing, PagedLayer):
    """A layer that attends to the pages of another one, with its index. If that one chooses for others, also for this.

    Args:
        recover: recomputes damaged pages of the source.
    """

    def __init__(self, layer: int, source: PagedLayer, recover: Recover) -> None:
        reader = PageReader(source.pages, source.workspace, recover, chosen_on_host=source.index.attends_on_host)
        part = Part.FOLLOWS if source.part is Part.CHOOSES else source.part
        super().__init__(
            layer, source.pages, reader, source.upkeep, source.workspace, source.budget_of, None, placed=source.placed,
            choices=source.choices, part=part,
        )  # fmt: skip

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        keys, values = (side.to(q.dtype) for side in self._block(start, start + q.shape[1]))
        blocks = (self._block(begin, min(begin + KEY_BLOCK, start)) for begin in range(0, start, KEY_BLOCK))
        return attend_exactly(q, keys, values, scale, blocks)[0]

    def _block(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """K and V `[G, end - begin, D]` by position, copies."""
        sealed, size = self.pages.sealed, self.layout.page_size
        parts = []
        if begin < sealed:
            first = begin // size * size
            keys, values = self.reader.block(first, min(-(-end // size) * size, sealed))
            some = slice(begin - first, min(end, sealed) - first)
            parts.append(torch.stack([keys[:, some], values[:, some]]))
        if end > sealed:
            rest = torch.stack(self.pages.tail)[:, :, max(0, begin - sealed) : end - sealed]
            parts.append(rest.to(parts[0].dtype) if parts else rest)
        kv = torch.cat(parts, 2)
        return kv[0], kv[1]

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self._attend(q, scale)

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        end, rows = self.pages.tail_len, q.shape[1]
        assert rows <= end, "the source has published a page that was open for some of the rows"
        outs = []
        for row in range(rows):
            self.pages.tail_len = end - rows + row + 1
            outs.append(self._attend(q[:, row], scale))
        return torch.stack(outs, 1)

    def begin_step(self, at: Attending) -> tuple[Run, int, Standing | None]:
        run, tokens = self.pages.run
        return run, tokens, self._standing(at)

    def rollback(self, point: Any) -> None:
        self.truncate(len(self.pages.pids))  # the source has gone back

    def truncate(self, num_pages: int) -> None:
        self.reader.truncate(num_pages * self.layout.page_size)

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        self.reader.count()

    def close(self) -> None:
        self.reader.close()


class SharingWindow(Sharing):
    """A layer that attends to the window of another one."""

    def __init__(self, layer: int, source: SlidingLayer) -> None:
        self.layer, self._source = layer, source
        self._standing = StandingWindow(source.window)

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        return self._source.attend_last(q, start, scale)

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        return self._source.attend_last(q, start, scale)

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self._source.attend_newest(q, scale)

    def begin_step(self, at: Attending) -> tuple[Run, int, Standing]:
        run, tokens = self._source.run
        return run, tokens, self._standing.of(at)

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int:
        return self._source.attend(rows, at, run)


def sharing(layer: int, source: LayerKV, recover: Recover) -> LayerKV:
    """A layer that attends to what `source` keeps. `recover` recomputes damaged pages of it."""
    if isinstance(source, SlidingLayer):
        return SharingWindow(layer, source)
    assert isinstance(source, PagedLayer), "a recurrent layer has no keys"
    return SharingPages(layer, source, recover)
