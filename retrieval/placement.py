"""The second waist of `stratakv.retrieval`: which tokens of a text are worth a place near, and how many of them?

A `Placement` serves one layer, as an index does. It judges tokens when they come and by the attention that they get,
not by a query that wants something now; so it can be asked once, at a prompt's end, for all steps after it. Its answer
is used in one of two ways (`mode` of a spec):

    visible   as the methods were published: a step reads what was kept and nothing else. The rest stays in the store,
              but this conversation never sees it again.
    hot       what was kept stays in the fastest tier, the rest goes down first when room is needed, and an index finds
              whatever a step needs. No output changes, only what moves.

The order of calls, for one layer of one sequence:

    prompt   start -> enter, enter, ...      keys and values of the next tokens, in order, each once
                      observe                query rows: each chunk's, or the last ones of the prompt (`rows`)
                      compare                what the layer made of hidden states, where it `compares`
                      read                   token ids, where it `reads`
                      wish -> divide         what each layer asks for -> tokens for each layer
                      keep -> leave          which tokens stay; what is remembered of the others
    reply    enter -> observe -> keep        at each whole page, where `prunes` (otherwise all of a reply is kept)

A token that was not kept is never judged again, in either mode: what a placement knows has one number for each token
that is still kept, a *column*. Sinks, the local window and the unsealed tail always stay.

Shapes   G KV heads, R query heads each, m tokens that are kept (columns), n new tokens, D head dim.
Position -1 in a column is no token: heads that keep fewer than others are padded at the front.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .index import NoOptions
from .params import IndexParams

State = dict[str, Tensor]
"""What a placement knows of one layer of one sequence. A tensor named in `columns` has a column for each kept token,
`[G, m, ..]`. No tensor is written again: each call makes new ones, so that going back is holding on to the old."""
EVERY = -1
"""`rows` of a placement that looks at every query row of a prompt."""
ROWS = 128
"""Query rows whose attention is computed at a time: with a block of keys they take some megabytes, whatever the text's
length."""
Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits `[G, R, n, b]`, positions of the rows `[n]` and of the columns `[G, b]`) -> other logits, in the same memory
or not."""


class Text(Protocol):
    """The tokens that are kept, as a placement may see them."""

    @property
    def positions(self) -> Tensor:
        """int64 `[G, m]`, ascending behind the padding."""
        ...

    @property
    def prompt(self) -> int:
        """Position behind the last prompt's last token: what comes after it is a reply. While a prompt comes in it is
        the text's end."""
        ...

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns, and their rotated keys and values, each fp32 `[G, b, D]`, a block at a time. A block is good until
        the next."""
        ...


class Rows(NamedTuple):
    """Query rows of consecutive tokens that are the last ones of `text`."""

    queries: Tensor
    """Rotated and scaled, fp32 `[G, R, n, D]`."""
    start: int
    """Position of the first."""
    text: Text
    lse: Tensor | None = None
    """Logarithms of the sums of exponentials of all logits of each row, fp32 `[G, R, n]`, where attention has computed
    them; None: not known."""

    def weights(self, change: Change | None = None) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """How the rows attend to what is kept: the rows' positions `[n]`, columns, and weights `[G, R, n, b]` that add
        up to 1 over all columns; at most `ROWS` rows and a block of columns at a time. `change` is given the logits
        before the softmax."""
        for begin in range(0, self.queries.shape[2], ROWS):
            some = self.queries[:, :, begin : begin + ROWS]
            at = self.start + begin + torch.arange(some.shape[2], device=some.device)
            blocks = self._logits(some, at, change)
            if self.lse is not None and change is None:
                lse = self.lse[:, :, begin : begin + ROWS]
            else:
                made = list(islice(blocks, 2))
                lses = [logits.logsumexp(-1) for _, logits in chain(made, blocks)]
                lse = torch.stack(lses).logsumexp(0)
                # Those of a text of one block are still there; the others' were let go, and are made again.
                blocks = iter(made) if len(made) < 2 else self._logits(some, at, change)
            for columns, logits in blocks:
                yield at, columns, logits.sub_(lse.unsqueeze(-1)).exp_()

    def _logits(self, some: Tensor, at: Tensor, change: Change | None) -> Iterator[tuple[slice, Tensor]]:
        """Of the rows `some` at positions `at`, and the columns that one of them sees."""
        groups, repeats, count, dim = some.shape
        by_group = some.reshape(groups, repeats * count, dim)
        for columns, keys, _ in self.text.blocks():
            positions = self.text.positions[:, columns]
            seen = int((positions <= at[-1]).sum(1).max())
            if not seen:
                return
            columns, positions = slice(columns.start, columns.start + seen), positions[:, :seen]
            logits = torch.bmm(by_group, keys[:, :seen].transpose(1, 2)).view(groups, repeats, count, -1)
            if change is not None:
                logits = change(logits, at, positions)
            first = 0 if bool((positions[:, 0] < 0).any()) else int((positions <= at[0]).sum(1).min())
            if first < seen:
                hidden = (positions[:, None, first:] > at[:, None]) | (positions[:, None, first:] < 0)
                logits[..., first:].masked_fill_(hidden.unsqueeze(1), -torch.inf)
            yield columns, logits


class Facts(NamedTuple):
    """What a placement may know of its layer and model besides the layer's number."""

    repeats: int = 1
    """Query heads of each KV head."""
    looks_back: Mapping[int, Tensor] = {}
    """By layer, how much each KV head looks at earlier tokens like the last one, and at those behind them, fp32
    `[2, G]`; empty unless it `searches`."""
    classes: Tensor | None = None
    """The class of each token id, uint8 `[vocabulary]`: `SPECIAL`, `PUNCTUATION`, or 0; None unless it `reads`."""


SPECIAL, PUNCTUATION = 1, 2
"""Classes of tokens: that no text has, and marks alone."""


class Placement(ABC):
    """One way to tell which tokens matter."""

    name: ClassVar[str]
    Options: ClassVar[type[Any]] = NoOptions
    """Frozen dataclass of int and float settings, as of an index."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Names of what is known of each token."""
    prunes: ClassVar[bool] = False
    """True if a reply keeps to the budget, too: what was kept goes as new pages come. False: all of a reply is kept."""
    compares: ClassVar[bool] = False
    """True if it looks at hidden states."""
    searches: ClassVar[bool] = False
    """True if it needs to know which heads look far back."""
    reads: ClassVar[bool] = False
    """True if it looks at token ids."""

    def __init__(self, params: IndexParams, layer: int, options: Any, facts: Facts | None = None) -> None:
        self.params, self.layer, self.options, self.facts = params, layer, options, facts or Facts()

    @property
    def rows(self) -> int:
        """The last query rows of a prompt that `observe` is to be given; `EVERY`: all, as they come; 0: none. Of a
        reply it is given each, a page at a time, if `prunes`, but for a 0 here."""
        return 0

    def start(self, keys: Tensor, values: Tensor) -> State:
        """What is known before the first token, besides columns; keys and values `[G, 0, D]`."""
        return {}

    def enter(self, keys: Tensor, values: Tensor, positions: Tensor) -> State:
        """The columns of new tokens: keys and values `[G, n, D]`, positions `[n]`. Unless a method has more to say,
        each begins at 0."""
        return {name: keys.new_zeros(keys.shape[:2], dtype=torch.float32) for name in self.columns}

    def observe(self, state: State, rows: Rows) -> State:
        """What changes in `state` now that these rows have attended; only what changes need be given."""
        return {}

    def compare(self, state: State, cosines: Tensor) -> State:
        """What changes in `state`, from the cosines between hidden states before and after the layer, of the next rows
        of a prompt, fp32 `[n]`."""
        return {}

    def read(self, state: State, ids: Tensor) -> State:
        """What changes in `state`, from the ids of the tokens that are kept, int64 `[G, m]`, at a prompt's end. Padding
        may have any id."""
        return {}

    @abstractmethod
    def scores(self, state: State, text: Text) -> Tensor:
        """How much each token matters, fp32 `[G, m]`: the highest stay. Padding may have any score."""

    def recent(self, budget: int) -> int:
        """How many of the last tokens stay whatever their scores."""
        return self.params.local

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        """Which columns stay, bool `[G, m]`: at most `budget` of each head where forced ones leave room."""
        forced = self.forced(text, budget)
        scores = self.scores(state, text).masked_fill(forced, torch.inf).masked_fill(text.positions < 0, -torch.inf)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(forced).scatter_(1, order[:, :budget], True)
        return (kept | forced) & (text.positions >= 0)

    def leave(self, state: State, text: Text, kept: Tensor) -> State:
        """What changes in `state` as all columns go but those `kept`, bool `[G, m]`."""
        return {}

    def rest(self, state: State) -> tuple[Tensor, Tensor, Tensor] | None:
        """A key and a value of each head, fp32 `[G, D]`, that steps read for all that has gone, and the number of
        tokens `[G]` that each counts for in the softmax; None: nothing is read for them."""
        return None

    def forced(self, text: Text, budget: int) -> Tensor:
        """The columns that stay in any case, bool `[G, m]`: sinks and recent tokens."""
        end = text.positions[:, -1:] + 1
        recent = max(self.params.local, self.recent(budget))
        at = text.positions
        return (at >= 0) & ((at < self.params.sink) | (at >= end - recent))

    def least(self, budget: int) -> int:
        """How many tokens of each head these are, of a text that is long enough."""
        return self.params.sink + max(self.params.local, self.recent(budget))

    def wish(self, state: State, text: Text) -> Tensor:
        """What this layer says to `divide`."""
        return torch.empty(0, dtype=torch.float32)

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        """How many tokens each layer may keep of each head, from what all layers wish, in order. Their mean is
        `budget`, up to rounding."""
        return [budget] * len(wishes)


def pooled(scores: Tensor, width: int) -> Tensor:
    """The mean over each column and its neighbours, `width` columns (odd) of `[G, m]`: a token beside ones that matter
    matters, too. At the ends what is missing counts as 0, as the methods' own code has it."""
    return torch.nn.functional.avg_pool1d(scores.unsqueeze(0), width, 1, width // 2)[0]


def shares(weights: Sequence[float], budget: int, least: int, most: Sequence[int] | None = None) -> list[int]:
    """Divide `budget` for each of so many layers in proportion to `weights`, none below `least`. What a layer has no
    use for, as it has only `most` tokens, goes to the others in the same proportion."""
    given, rest = [least] * len(weights), list(range(len(weights)))
    left = max(0, budget - least) * len(weights)
    while rest:
        total = math.fsum(weights[i] for i in rest)
        part = {i: left * (weights[i] / total if total else 1 / len(rest)) for i in rest}
        full = [i for i in rest if most is not None and least + part[i] > most[i] - 1e-6]
        for i in full or rest:
            given[i] = most[i] if full and most is not None else least + int(part[i])
        left -= sum(given[i] - least for i in full)
        rest = [i for i in rest if i not in full] if full else []
    return given
