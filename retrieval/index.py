"""The waist of `stratakv.retrieval`: which of the stored tokens should one decode step read, and how?

An `Index` serves one layer. It summarises the keys of a sequence in a *state*, ranks them against a
query, and attends to what it chose. It sees rotated keys `[G, n, D]` and queries `[G, R, D]` (G KV
heads, R query heads each), and fetches KV through a `Reader`, never from a file or a tier. The index
object holds only parameters and is shared by sequences; states are explicit, one per sequence.

    fit (a sample of keys)  ->  empty state   -> append (all keys, in order) ...
                                              -> select -> attend              one decode step
    is_outgrown?  -> the caller fits anew and appends everything again

A layer may choose for those after it (`Part`): it reads everything and hands its choice on, and they have no say.

Only sealed tokens are indexed: the unsealed tail is always read. A selection names *units*: runs of
tokens that divide a page. Sinks and the local window are always part of it, and its size counts them:
a budget is what is truly read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .layer import IndexedLayer
from .params import IndexParams
from .reading import Reader, Run, read_exactly
from .scoring import Ranking, Scoring
from .stored import Geometry, Stored

State = TypeVar("State")
"""The state that an index keeps of one sequence: each index has its own kind."""
FIT_TOKENS = 4096
"""The most tokens an index is fitted on: a sample of pages spread over the sequence."""
RUN_PAGES = 8
"""Neighbouring pages that such a sample takes together."""
STATELESS_ROOM = 2**17
"""Units that an index without a state ranks: pages, so of 16 tokens two million."""


class Part(Enum):
    """How a layer comes by what a step reads."""

    ALONE = "it selects"
    CHOOSES = "it reads everything, and chooses for the layers after it"
    FOLLOWS = "it reads what the last layer before it that chooses has chosen"


class Selection(NamedTuple):
    """Units to read, one row per KV head."""

    ids: Tensor
    """int64 `[G, n]` on the query's device, ascending and unique in each row."""
    unit: int
    """Tokens per unit; divides `page_size`."""
    notes: Any = None
    """Further results of `select` that the same index's `attend` needs."""

    @property
    def num_tokens(self) -> int:
        """Tokens read per KV head."""
        return int(self.ids.shape[1]) * self.unit


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """The settings of an index that has none."""


class IndexOf(ABC, Generic[State]):
    """One way to find the tokens that matter in one layer."""

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    """Frozen dataclass of int and float settings; a spec such as `shadowkv:rank=64` fills it."""
    learns: ClassVar[bool] = False
    """True if the result of `fit` depends on the sample of keys it is given."""
    uses_queries: ClassVar[bool] = False
    """True if the index learns from queries: `fit` and `append` are then given the query of each page's last token."""
    reads_exactly: ClassVar[bool] = True
    """True if attention over the chosen tokens is exact; False if keys or weights are estimated as well."""
    attends_on_host: ClassVar[bool] = False
    """True if attention is computed on the CPU, where the pages lie; only its result goes to the device."""
    reads_values_alone: ClassVar[bool] = False
    """True if the index reads values without their keys: it has no use where keys contain the values."""
    remembers: ClassVar[bool] = False
    """True if a step leaves something in the state for the next, by `remember`. `learned_by` gives that as well."""
    has_budget: ClassVar[bool] = True
    """False if `select` chooses everything, whatever the budget."""
    needs_profile: ClassVar[bool] = False
    """True if the index cannot work without `IndexedLayer.profile`."""

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: Any) -> None:
        self.params, self.layer, self.options = params, layer, options

    @property
    def part(self) -> Part:
        """How this layer comes by what a step reads."""
        return Part.ALONE

    @property
    def identity(self) -> str:
        """Name, settings and profile: a state can be restored only by an index of the same identity."""
        return f"{self.name} {self.params} {self.options}"

    @abstractmethod
    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: State | None = None
    ) -> State:
        """Make a state that holds no token yet.

        Args:
            keys: sample of the sequence `[G, m, D]`, whole pages, m >= 0. May be overwritten after
                the call, as in `append`: keep copies.
            positions: int64 `[m]`, ascending.
            queries: with `uses_queries`, of the sampled pages where they are known `[G, R, p, D]`, scaled;
                `append` is then called without them. None: unknown.
            previous: the state that was outgrown, which knows queries from before.
        """

    @abstractmethod
    def append(self, state: State, keys: Tensor, queries: Tensor | None = None) -> None:
        """Extend `state` by further sealed keys `[G, n, D]`, whole pages in order (n >= 0), and their pages'
        queries `[G, R, n / page_size, D]`. The state does not depend on how
        the keys are divided among calls."""

    def build(self, keys: Tensor, queries: Tensor | None = None) -> State:
        """Fit on a sample of `keys` `[G, n, D]`, the whole sequence so far, and append all of them."""
        size = self.params.page_size
        pages = spread_pages(keys.shape[1] // size, size)
        positions = (pages.unsqueeze(1) * size + torch.arange(size)).flatten().to(keys.device)
        sampled = None if queries is None else queries[:, :, pages.to(queries.device)]
        state = self.fit(keys[:, positions], positions, sampled)
        self.append(state, keys)
        return state

    def is_outgrown(self, state: State) -> bool:
        """True if the state should be fitted anew, since the sequence is no longer like the one it learned from."""
        return False

    @abstractmethod
    def truncate(self, state: State, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens (whole pages). Learned numbers stay."""

    def learned_by(self, state: State) -> Any:
        """A cheap copy of the learned numbers that `truncate` does not take back, for `unlearn`; None without any."""
        return None

    def unlearn(self, state: State, learned: Any) -> None:
        """Take the state back to the learned numbers that `learned_by` gave for it earlier."""

    @abstractmethod
    def select(self, state: State, q: Tensor, num_tokens: int, budget: int) -> Selection:
        """Choose units of the `num_tokens` sealed tokens to read for `q` `[G, R, D]` (rotated and scaled, fp32).

        `budget` is in tokens, smaller than `num_tokens`, and holds at least the forced units plus
        one page. Pure: changes nothing. Reads at most `budget` tokens per KV head.
        """

    def remember(self, state: State, chosen: Selection) -> None:
        """A step reads `chosen`, which `select` gave: keep what the next steps need of it. Guesses are not remembered.
        What `learned_by` gave before is not changed by it."""

    def scoring(self, state: State, num_tokens: int) -> Scoring | None:
        """How `select` scores, for loops that choose without Python; None: there is only `select`. The tensors are
        views, good until the state changes."""
        return None

    def ranking(self, state: State) -> Ranking | None:
        """How `select` chooses, for decode that never waits for the device; None: there is only `select`."""
        return None

    def attend(
        self, state: State, q: Tensor, chosen: Selection, reader: Reader, tail: Run, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attend with `q` `[G, R, D]` (rotated, not scaled) to the chosen units and the unsealed tail. Returns out `[G,
        R, D]` and lse fp32 `[G, R]`."""
        return read_exactly(q, chosen.ids, chosen.unit, reader, tail, scale)

    def hand_on(
        self, state: State, q: Tensor, num_tokens: int, budget: int, reader: Reader, tail: Run, scale: float,
        rounds: Sequence[int],
    ) -> tuple[Tensor, Tensor, Selection]:  # fmt: skip
        """Attend to everything, where `part` is CHOOSES. Returns what `attend` does, and what of the `num_tokens`
        sealed tokens the layers that follow read for the same token, within `budget`. Pure.

        Args:
            rounds: where rounds of the dialogue begin, ascending, besides at the first token.
        """
        raise AssertionError("this layer does not choose for others")

    @abstractmethod
    def export(self, state: State) -> dict[str, Tensor]:
        """The state as named tensors, to be saved with a session."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> State:
        """The state that `export` gave; `stored.check_stored` comes first if they were on disk."""

    @abstractmethod
    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        """Dtypes, shapes and ranges of the tensors that `export` gives for such a layer. Where the state chose a size
        itself, `tensors` tell it; raises ValueError if they tell none that it could have chosen."""

    def state_bytes(self, state: State) -> int:
        """Bytes of memory that the state occupies."""
        return sum(t.nbytes for t in self.export(state).values())

    def copy(self, state: State) -> State:
        """An independent state, for a forked conversation."""
        return self.restore({name: t.clone() for name, t in self.export(state).items()})


class StatelessIndex(IndexOf[None]):
    """An index that keeps nothing of a text: what it reads follows from where tokens stand, or from other layers."""

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: None = None) -> None:
        return None

    def append(self, state: None, keys: Tensor, queries: Tensor | None = None) -> None:
        return None

    def truncate(self, state: None, num_tokens: int) -> None:
        return None

    def export(self, state: None) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        return None

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {}

    def everything(self, q: Tensor, num_tokens: int) -> Selection:
        """All pages of `num_tokens` tokens, for each KV head of `q` `[G, R, D]`."""
        pages = torch.arange(num_tokens // self.params.page_size, device=q.device)
        return Selection(pages.expand(q.shape[0], -1), self.params.page_size)


Index = IndexOf[Any]
"""An index of any kind, for whoever hands its states on without a look."""


def spread_pages(num_pages: int, page_size: int) -> Tensor:
    """Choose at most `FIT_TOKENS` tokens' worth of pages, in runs evenly spread over `num_pages`. Returns their
    numbers, int64, ascending.

    It takes runs of some pages, not single ones, so that likeness among neighbours can be learned as well.
    """
    limit = FIT_TOKENS // page_size
    if num_pages <= limit:
        return torch.arange(num_pages)
    runs = limit // RUN_PAGES
    starts = torch.arange(runs) * (num_pages // RUN_PAGES) // runs * RUN_PAGES
    return (starts.unsqueeze(1) + torch.arange(RUN_PAGES)).flatten()


class Rows:
    """A tensor `[G, n, W]` that grows along n without copying at every append."""

    def __init__(self, data: Tensor) -> None:
        self.buffer = data.contiguous()
        """All that there is room for `[G, room, W]`: rows from `count` on may hold anything."""
        self.count = data.shape[1]

    @property
    def data(self) -> Tensor:
        """All rows so far `[G, n, W]`, a view."""
        return self.buffer[:, : self.count]

    def append(self, rows: Tensor) -> None:
        needed = self.count + rows.shape[1]
        if needed > self.buffer.shape[1]:
            groups, held, width = self.buffer.shape
            room = max(needed, held + held // 8 + 8)
            grown = torch.empty(groups, room, width, dtype=rows.dtype, device=rows.device)
            grown[:, : self.count] = self.data
            self.buffer = grown
        self.buffer[:, self.count : needed] = rows
        self.count = needed

    def truncate(self, count: int) -> None:
        self.count = min(self.count, count)
