"""What one layer keeps of one sequence, as engine, sessions and evaluation see it: `LayerKV`.

The layers of a model keep different things of a text. `tiered.TieredLayer` keeps all keys and values, or of latent
attention one vector a token that is both (`PageLayout.value_dim`), as pages of the store with an index over them;
`sliding.SlidingLayer` keeps those of the last tokens; `recurrent.RecurrentLayer` keeps a state that each token changes.
Layers of `sharing` keep nothing: they read what another layer keeps, which comes before them. Callers tell every layer
of a sequence the same things in the same order, and a layer that a call means nothing to does nothing.

    prefill   begin -> extend, extend, ... -> finish     once for each span; end_prefill after the last one
              compare                                    after each extend
    decode    (look_ahead ->) step (-> seal)             one token; seal if it fills a page; undo_step takes it back
    known     extend_known                               many steps of this layer at once
              mix                                        in place of extend, step and extend_known: a recurrent layer
    stored    adopt | restore                            what the store has of a prefix | what a session has
    back      snapshot -> rollback                       to any earlier point
    copy      follow                                     another sequence's past

Turns       `begin` to `finish`, and each `step` and `seal`, happen while the caller holds the model's turn without a
            break: the buffers that layers compute in are shared by all sequences of the model.
Inputs      q, k, v are rotated. A layer copies what it keeps of them before it returns.
Results     of `extend`, `extend_known` and `step` are the caller's. `export`, `leave` and `snapshot` give copies, or
            what is never written again, so they stay good whatever happens to the sequence.
Failures    An exception leaves the layer in a state from which `rollback` to an earlier snapshot works; after a failed
            `step` before any `seal`, `undo_step` is enough. Nothing that was not whole was published by then.

Shapes      G KV heads, H query heads (a multiple of G), T rows, L tokens a page, D head dim. Values are D wide, too,
            and so is what attention gives, but where keys contain the values: there both have the values' width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor

from .attend_rows import Attending
from .standing import Run, Standing

State = dict[str, Tensor]
"""A recurrent layer's state, fp32 tensors by name. No state is written again: each token makes a new one."""
Advance = Callable[[tuple[Tensor, ...], State], tuple[Tensor, State]]
"""(inputs `[T, ..]` each, state) -> (what they give, `[T, ..]`, the state behind them)."""


class Heads(Protocol):
    """What makes keys and values of H heads from a layer's keys, which are latents; widths as in `model.latent`."""

    @property
    def expands_from(self) -> float:
        """The number of rows from which that pays."""

    def absorbed(self, q: Tensor) -> Tensor:
        """Queries `[H, T, head]` as they are multiplied with latents, `[H, T, D]`."""

    def made(self, out: Tensor) -> Tensor:
        """What attention to latents gave, `[H, T, rank]`, as values of heads, `[H, T, value]`."""

    def expanded(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys `[H, n, head]` and values `[H, n, value]` from `[1, n, D]`."""


class LayerKV(ABC):
    """What one layer keeps of one sequence. The module's docstring says in which order calls come."""

    layer: int
    """The layer's number in the model."""
    is_paged: ClassVar[bool]
    """The pages of a text are all that this layer needs to go on from it: it can adopt any stored prefix without
    `leave`'s help, and `truncate` it."""
    tokens_read: int = 0
    """Tokens of each KV head that the last step read, in a layer that has a budget; otherwise 0."""

    # Prefill: many tokens, attended to exactly

    @abstractmethod
    def begin(self) -> None:
        """Start a span. It must end in the same turn, or nothing of it is kept."""

    @abstractmethod
    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
        """Add the next rows of the span, at positions `start ..`, and return their exact causal attention `[H, T, D]`
        over everything before them and themselves; q `[H, T, D]`, k and v `[G, T, D]`.

        Raises ConversationError if another call has come between the rows of the span.
        """

    def extend_heads(self, q: Tensor, k: Tensor, start: int, scale: float, heads: Heads) -> Tensor:
        """`extend` in a layer that keeps latents, k `[1, T, D]`: attention `[H, T, value]` of q `[H, T, head]`."""
        raise AssertionError("a layer that keeps keys and values makes none")

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor) -> None:
        """See what the model's layer made of the rows of the last `extend`: hidden states `[1, T, C]` before and after
        it."""

    @abstractmethod
    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        """End the span: all of its rows are here. Publish the pages that it filled.

        Args:
            chains: names of those pages. tokens: uint32 `[pages, L]`, what they hold.
            length: tokens since the last page's end before the span.

        Raises:
            ConversationError: the span is not whole, or not this turn's; nothing was published.
            CapacityError: the tiers are full.
        """

    @abstractmethod
    def end_prefill(self) -> None:
        """All spans of a prompt are here: learn from them what decode needs."""

    # Decode: one token, attended to within the budget

    @abstractmethod
    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        """Bring nearer what the next step will read if its query is like `query()` (`[G, R, D]` fp32, rotated and
        scaled). Changes no result. `query` is called only if there is something to bring."""

    @abstractmethod
    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Add one token and return its attention `[H, D]`; q `[H, D]`, k and v `[G, D]`. Raises CapacityError."""

    @abstractmethod
    def begin_step(self, at: Attending) -> tuple[Run, int, Standing | None]:
        """Count one token in, as `step` does, whose k and v the caller writes by address.

        Returns:
            the run that it belongs into; the tokens there, the last of which is this one; what its attention reads, or
            None if the layer must be asked by `attend`. Run and rows are the same objects for as long as they hold.

        Raises CapacityError.
        """

    @abstractmethod
    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> int | None:
        """Compute the attention of the token that `begin_step` counted in, whose q, k and v are there: the same as the
        rows of `begin_step` by other means. `run` works through rows.

        Returns the parts; None: the result `[H * D]` is in `at.out` instead.
        """

    @abstractmethod
    def end_page(self, at: Attending) -> None:
        """The rows of `begin_step` have been worked through, and their token is the last one of a page: learn from its
        query what `seal` needs."""

    @abstractmethod
    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        """Forget the token of a step that failed, whether it got here or not. Before it there were `num_tokens`
        tokens, `tail_len` of them after the last page's end."""

    @abstractmethod
    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        """The last step's token filled a page: publish it under the name `chain`; tokens uint32 `[L]`. Raises
        CapacityError."""

    @abstractmethod
    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> Tensor:
        """Add known tokens at positions `start ..`, as `step` and `seal` would one by one. Shapes as in `extend`;
        `chains` and `tokens` as in `finish`, but that a page which the last token fills may be left to the caller."""

    # A recurrent layer's tokens, of prefill and decode alike

    def mix(self, inputs: tuple[Tensor, ...], advance: Advance) -> Tensor:
        """Add the next tokens, of which `advance` takes `inputs` `[T, ..]`, and return what it makes of them from the
        state before. The same in one piece, in several, and token by token, up to rounding."""
        raise AssertionError("a layer that attends has no state to advance")

    def begin_mix(self, addresses: np.ndarray) -> None:
        """Count one token in, as `mix` does, whose state the caller computes by address.

        Args:
            addresses: int64 `[2 S]`, to be filled in: of each of S tensors, where it lies and where the next one goes.
        """
        raise AssertionError("a layer that attends has no state to advance")

    # What the store and sessions keep

    @abstractmethod
    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        """What the store is to keep for sequences that begin with the same pages, besides those: the state `tail_len`
        tokens ago, which was the last page's end, and what was costly to learn. The first is named `LAYER` or
        `LAYER/PART`, the other `LAYER.PART`. A layer that is not paged and has nothing does not know that state.

        Args:
            num_computed: tokens that the prefill which ends here has computed; not everything is worth keeping for few.
        """

    @abstractmethod
    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        """Raise RecordError unless `adopt` can go on from `left`, which has what `leave` gave after `num_tokens` tokens
        and may come from anywhere. What `adopt` can do without is not looked at."""

    @abstractmethod
    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        """Go on with pages that the store has; they take the place of the tail.

        Args:
            chains: names of the pages. tokens: uint32 `[pages, L]`, what they hold.
            num_tokens: tokens of the sequence with them.
            left: what `leave` gave for the same tokens, of all layers; checked. A paged layer does without.
        """

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """Everything that a session keeps of this layer besides pages."""

    @abstractmethod
    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        """The names in `tensors` that are this layer's: those that begin with `prefix` and that `export` gives.

        Raises RecordError, naming one, unless this layer can hold them after `num_tokens` tokens; they may come from
        anywhere. What `restore` can do without is not looked at.
        """

    @abstractmethod
    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        """Be, in a new sequence, what `export` gave; moves no page. `chains`, `tokens` and `num_tokens` as in `adopt`.

        Args:
            tensors: checked, names without prefix.
            has_state: whether an index state among them is of the same index as this layer's.
        """

    # Points and copies

    @abstractmethod
    def snapshot(self) -> Any:
        """This point, for `rollback`. Cheap: pages and index states are not copied."""

    @abstractmethod
    def rollback(self, point: Any) -> None:
        """Back to what an earlier `snapshot` of this layer gave."""

    @abstractmethod
    def truncate(self, num_pages: int) -> None:
        """Keep the first `num_pages` pages and nothing after them. Only for layers that are `is_paged`."""

    @abstractmethod
    def follow(self, other: Self) -> None:
        """Take on the past of `other`, the same layer in another sequence; this one is new. Pages are shared, the rest
        is copied. Raises CapacityError."""

    @abstractmethod
    def close(self) -> None:
        """Give everything up; pages stay in the store as cache. Safe to call twice."""
