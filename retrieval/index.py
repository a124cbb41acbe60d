"""The waist of `stratakv.retrieval`: which of the stored tokens should one decode step read?

An `Index` summarises the keys of one layer of one sequence in a *state*, and ranks them against a
query. It sees rotated keys `[G, n, D]` and queries `[G, R, D]` (G KV heads, R query heads each),
never a file or a tier. The index object holds only parameters and is shared; states are explicit,
one per layer and sequence.

Only sealed tokens are indexed: the unsealed tail is always read. A selection names *units*: pages
of `page_size` tokens, or single tokens. Sinks and the local window are always part of it, and its
size counts them: a budget is what is truly read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .params import IndexParams


class Selection(NamedTuple):
    """Units to read, one row per KV head."""

    ids: Tensor
    """int64 `[G, n]` on the query's device, ascending and unique in each row."""
    unit: int
    """Tokens per unit: `page_size` or 1."""

    @property
    def num_tokens(self) -> int:
        """Tokens read per KV head."""
        return int(self.ids.shape[1]) * self.unit


class Index(ABC):
    """One way to find the tokens that matter."""

    name: str

    def __init__(self, params: IndexParams) -> None:
        self.params = params

    @abstractmethod
    def build(self, keys: Tensor) -> Any:
        """State for sealed keys `[G, n, D]`, n a multiple of the page size (possibly 0).

        The tensor may be overwritten after the call: keep copies.
        """

    @abstractmethod
    def append(self, state: Any, keys: Tensor) -> None:
        """Extend `state` by further sealed keys, in order. Equal to building with all of them."""

    @abstractmethod
    def truncate(self, state: Any, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens (whole pages)."""

    @abstractmethod
    def select(self, state: Any, q: Tensor, num_tokens: int, budget: int) -> Selection:
        """Units of the `num_tokens` sealed tokens to read for `q` `[G, R, D]` (rotated and scaled).

        `budget` is in tokens, smaller than `num_tokens`, and holds at least the forced units plus
        one. Pure: changes nothing. Reads at most `budget` tokens per KV head.
        """

    @abstractmethod
    def export(self, state: Any) -> dict[str, Tensor]:
        """The state as named tensors, to be saved with a session."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> Any:
        """The state that `export` gave. Raises KeyError if a tensor is missing."""

    def state_bytes(self, state: Any) -> int:
        """Memory the state occupies."""
        return sum(t.nbytes for t in self.export(state).values())

    def copy(self, state: Any) -> Any:
        """An independent state, for a forked conversation."""
        return self.restore({name: t.clone() for name, t in self.export(state).items()})


class Rows:
    """A tensor `[G, n, W]` that grows along n without copying at every append."""

    def __init__(self, data: Tensor) -> None:
        self._buffer = data.contiguous()
        self.count = data.shape[1]

    @property
    def data(self) -> Tensor:
        """The rows so far, a view."""
        return self._buffer[:, : self.count]

    def append(self, rows: Tensor) -> None:
        needed = self.count + rows.shape[1]
        if needed > self._buffer.shape[1]:
            groups, held, width = self._buffer.shape
            room = max(needed, held + held // 8 + 8)
            grown = torch.empty(groups, room, width, dtype=rows.dtype, device=rows.device)
            grown[:, : self.count] = self.data
            self._buffer = grown
        self._buffer[:, self.count : needed] = rows
        self.count = needed

    def truncate(self, count: int) -> None:
        self.count = min(self.count, count)
