"""The queries that an index learns from: those of each page's last token, kept until the page is sealed or longer."""

from __future__ import annotations

import torch
from torch import Tensor


class PageQueries:
    """The queries of one layer of one sequence, scaled, as `[G, R, pages, D]` for G KV heads.

    Args:
        num_groups: KV heads. used: the layer's index learns from them.
    """

    def __init__(self, num_groups: int, *, used: bool) -> None:
        self._num_groups, self._used = num_groups, used
        self._coming: list[Tensor] = []
        self.kept: list[Tensor] | None = None
        """The queries of all sealed pages, in order, for the indexes of forks. None: nobody asked for them, or those of
        some pages are unknown."""

    @property
    def is_wanted(self) -> bool:
        return self._used or self.kept is not None

    def note(self, q: Tensor, scale: float) -> None:
        """Queries `[H, p, D]` of the last tokens of p pages that are about to be sealed."""
        heads, *rest = q.shape
        self._coming.append(q.reshape(self._num_groups, heads // self._num_groups, *rest).float() * scale)

    def drop(self, num_pages: int) -> None:
        """Drop queries that are not taken yet beyond the first `num_pages` pages: those pages were not sealed."""
        if sum(queries.shape[2] for queries in self._coming) > num_pages:
            self._coming = [torch.cat(self._coming, 2)[:, :, :num_pages]]

    def take(self, num_pages: int) -> Tensor | None:
        """The queries of the `num_pages` pages sealed since, for the index; None if it does not learn from them."""
        self.drop(num_pages)
        queries = torch.cat(self._coming, 2) if self._coming else None
        self._coming = []
        if self.kept is not None and queries is not None:
            self.kept.append(queries)
        return queries if self._used else None

    def truncate(self, num_pages: int) -> None:
        """Keep the queries of the first `num_pages` pages."""
        if self.kept:
            self.kept = [torch.cat(self.kept, 2)[:, :, :num_pages]]

    def forget(self) -> None:
        """Pages came whose queries nobody knows: keep none."""
        self._coming, self.kept = [], None

    def all_kept(self) -> Tensor | None:
        """The queries of all pages, if the index of a fork can be told them."""
        return torch.cat(self.kept, 2) if self.kept else None
