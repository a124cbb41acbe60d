"""A sequence: its token log, its chain of page names, and what each layer keeps of it.

What is stored of a text was turned by the rotary tables of one reach (`rope`), all of it. A text that grows beyond that
is computed again, and its sequence goes on with another `Past`; the old one lives on as long as a `Snapshot` leads back
to it (docs/decisions/0034).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...storage import CHAIN_BYTES, ROOT, next_chain
from ..api.errors import ConversationError
from ..layers.base import LayerKV
from ..layers.choices import Choices
from .sequence_rows import SequenceRows

Place = tuple[int, int, bytes]
"""An end of a text: its pages, its tokens, and the chain that the next page's name goes on from."""
PROMPT, GENERATED = 0, 1
"""Origins of tokens: read as a prompt's, exactly, or one by one within the budget."""
_CHANGED = (
    "a sequence was changed while its pages were computed; nothing of them is kept. "
    "Use a sequence from one call at a time"
)


@dataclass(frozen=True, slots=True)
class NamedPages:
    """Tokens that come next in a sequence, and the pages that they fill there, by name. Made by `Sequence.name_pages`
    only.

    A name says which tokens a page's KV was computed from, for every conversation that will ever look. So whoever
    publishes pages asks first: `require_right`.
    """

    new: np.ndarray
    """The tokens, uint32 `[n]`."""
    origin: int
    """`PROMPT` or `GENERATED`."""
    start: int
    """Pages of the sequence before these."""
    length: int
    """Tokens of the sequence when these were named."""
    previous: bytes
    """Chain of the page before these."""
    chains: list[bytes]
    tokens: np.ndarray
    """What the pages hold, uint32 `[pages, L]`: the sequence's tail first, then of `new` what fills them."""
    salts: list[bytes]

    def __len__(self) -> int:
        return len(self.chains)

    def first(self, num_pages: int) -> NamedPages:
        """The first pages alone, and of the new tokens those that fill them."""
        covered = (self.start + num_pages) * self.tokens.shape[1] - self.length
        chains, salts = self.chains[:num_pages], self.salts[:num_pages]
        return replace(self, new=self.new[:covered], chains=chains, tokens=self.tokens[:num_pages], salts=salts)

    def require_place(self, sequence: Sequence) -> None:
        """Raises ConversationError unless `sequence` still ends where these tokens begin: otherwise another call has
        changed it meanwhile."""
        sequence.require_place((self.start, self.length, self.previous))

    def require_right(self, sequence: Sequence) -> None:
        """Raises ConversationError as `require_place`, and unless the names are what the pages' tokens give there."""
        self.require_place(sequence)
        if _chained(self.previous, self.tokens, self.salts) != self.chains:
            raise ConversationError(_CHANGED)


def _chained(previous: bytes, pages: np.ndarray, salts: list[bytes]) -> list[bytes]:
    chains = []
    for page, salt in zip(pages, salts, strict=True):
        previous = next_chain(previous, page, salt)
        chains.append(previous)
    return chains


def root_of(reach: int) -> bytes:
    """The chain that the first page of a text of that reach goes on from: pages of one reach are never taken for pages
    of another."""
    if reach == 0:
        return ROOT
    return hashlib.blake2b(reach.to_bytes(8, "little"), digest_size=CHAIN_BYTES, person=b"reach").digest()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Past:
    """The KV of a sequence in all its layers, computed with the rotary tables of one reach."""

    reach: int
    layers: list[LayerKV] = field(default_factory=list)
    chains: list[bytes] = field(default_factory=list)
    origins: np.ndarray = field(default_factory=lambda: np.empty(1024, dtype=np.uint8))
    """uint8 `[n]`, the origin of each token, with room for more."""
    from_store: np.ndarray = field(default_factory=lambda: np.empty(1024, dtype=np.bool_))
    """bool `[n]`: the store had the token's KV when it joined."""
    choices: Choices = field(default_factory=Choices)
    """Of tokens that are under way through the layers."""
    rows: SequenceRows = field(default_factory=SequenceRows)
    """Of its compiled steps."""
    device_steps: dict[Any, Any] = field(default_factory=dict)
    """Those on the device, of itself and of batches that it is in (`resident_step.Steps`, by members)."""
    is_watched: bool = False
    """Its pages are given up when it is dropped (`pasts`)."""

    def close(self) -> None:
        """Give up all pages, which stay in the store as cache, and the memory of all else: layers that lead back to
        here would have it until Python looks for cycles. Safe to call twice."""
        for layer in self.layers:
            layer.close()
        self.layers.clear()
        self.chains.clear()
        for steps in [*self.device_steps.values()]:
            steps.end()
        self.device_steps.clear()
        self.rows = SequenceRows()

    def note_rounds(self, start: int, end: int) -> None:
        """Tokens `start .. end` are new, and their origins known: see where a prompt comes after a reply."""
        some, known = self.origins[max(0, start - 1) : end], self.choices.rounds
        begins = np.flatnonzero((some[1:] == PROMPT) & (some[:-1] == GENERATED)) + max(0, start - 1) + 1
        if len(begins) or (known and known[-1] >= start):
            self.choices.rounds = [at for at in known if at < start] + begins.tolist()

    def grow(self, needed: int) -> None:
        """Make room for `needed` tokens."""
        while needed > len(self.origins):
            self.origins = np.concatenate([self.origins, np.empty_like(self.origins)])
            self.from_store = np.concatenate([self.from_store, np.empty_like(self.from_store)])


class Sequence:
    """Append-only: tokens are added at the end or dropped from it, never re-rendered.

    `origins` tells prompt tokens from generated ones: pages with generated tokens are salted with
    the retrieval settings, because their KV depends on them. `num_from_store` is for people's eyes: it decides nothing.
    """

    def __init__(self, past: Past, page_size: int, salt: bytes) -> None:
        self.past, self.page_size, self.salt = past, page_size, salt
        self._tokens = np.empty(1024, dtype=np.uint32)
        self.num_tokens = 0

    @property
    def layers(self) -> list[LayerKV]:
        return self.past.layers

    @property
    def chains(self) -> list[bytes]:
        """Names of the sealed pages."""
        return self.past.chains

    @property
    def place(self) -> Place:
        """Where the text ends."""
        return len(self.chains), self.num_tokens, self.last_chain

    def require_place(self, place: Place) -> None:
        """Raises ConversationError unless the text ends there: otherwise another call has changed it meanwhile."""
        if self.place != place:
            raise ConversationError(_CHANGED)

    @property
    def last_chain(self) -> bytes:
        """The chain that the next page's name goes on from."""
        return self.chains[-1] if self.chains else root_of(self.past.reach)

    @property
    def tokens(self) -> np.ndarray:
        """uint32 `[num_tokens]`, a view."""
        return self._tokens[: self.num_tokens]

    @property
    def origins(self) -> np.ndarray:
        return self.past.origins[: self.num_tokens]

    @property
    def num_from_store(self) -> int:
        """Tokens whose KV the store had when they joined, and that were not computed here."""
        return int(self.past.from_store[: self.num_tokens].sum())

    @property
    def num_sealed(self) -> int:
        return len(self.chains) * self.page_size

    @property
    def tail_len(self) -> int:
        return self.num_tokens - self.num_sealed

    def name_pages(self, new: np.ndarray, origin: int) -> NamedPages:
        """The tokens `new`, which come next, and the whole pages in `tail + new`. Changes nothing."""
        length, new = self.num_tokens, new.astype(np.uint32)
        if self.tail_len + len(new) < self.page_size:
            none = np.empty((0, self.page_size), dtype=np.uint32)
            return NamedPages(new, origin, len(self.chains), length, self.last_chain, [], none, [])
        tokens = np.concatenate([self.tokens[self.num_sealed :], new])
        origins = np.full(len(tokens), origin, dtype=np.uint8)
        origins[: self.tail_len] = self.origins[self.num_sealed :]
        whole = len(tokens) // self.page_size
        pages = tokens[: whole * self.page_size].reshape(whole, self.page_size)
        salted = np.any(origins[: whole * self.page_size].reshape(whole, self.page_size), axis=1).tolist()
        salts = [self.salt if is_salted else b"" for is_salted in salted]
        previous = self.last_chain
        chains = _chained(previous, pages, salts)
        return NamedPages(new, origin, len(self.chains), length, previous, chains, pages, salts)

    def seal(self, named: NamedPages) -> None:
        """Every layer has taken the token `named` in a step: publish the page that it fills, if it does. Raises
        ConversationError if another call has changed the sequence, CapacityError."""
        if not named.chains:
            return
        named.require_right(self)
        for layer in self.layers:
            layer.seal(named.chains[0], named.tokens[0])

    def commit(self, named: NamedPages, *, from_store: bool = False) -> None:
        """Every layer has the new tokens, and the store their pages: from here on they are the sequence's. Raises
        ConversationError if another call has changed it.

        Args:
            from_store: the store had their KV; it was not computed here.
        """
        named.require_place(self)
        self.past.choices.clear()
        self._append(named.new, named.origin, from_store)
        self.past.chains += named.chains

    def restore(self, tokens: np.ndarray, origins: np.ndarray, chains: list[bytes]) -> None:
        """Be a sequence that was saved, whose layers have been filled from the store. This one is new.

        Args:
            tokens: uint32 `[n]`. origins: uint8 `[n]`. chains: names of its whole pages.
        """
        assert not self.num_tokens, "a sequence is restored into a new one"
        self._append(tokens, origins, True)
        self.past.chains += chains

    def _append(self, tokens: np.ndarray, origins: np.ndarray | int, from_store: np.ndarray | bool) -> None:
        old, new = self.num_tokens, self.num_tokens + len(tokens)
        while new > len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self.past.grow(new)
        self._tokens[old:new] = tokens
        self.past.origins[old:new] = origins
        self.past.from_store[old:new] = from_store
        self.past.note_rounds(old, new)
        self.num_tokens = new

    def snapshot(self) -> Snapshot:
        """This point, for `rollback`."""
        return Snapshot(self.num_tokens, len(self.chains), [layer.snapshot() for layer in self.layers], self.past)

    def rollback(self, snapshot: Snapshot) -> None:
        """Drop everything after `snapshot`."""
        self.past, self.num_tokens = snapshot.past, snapshot.num_tokens
        self.past.choices.clear()
        del self.chains[snapshot.num_chains :]
        for layer, saved in zip(self.layers, snapshot.layers, strict=True):
            layer.rollback(saved)

    def undo_step(self, num_tokens: int) -> None:
        """Back to `num_tokens` tokens, before a step that filled no page; not every layer need have its token."""
        self.num_tokens = num_tokens
        self.past.choices.clear()
        for layer in self.layers:
            layer.undo_step(self.tail_len, num_tokens)

    def truncate(self, num_pages: int) -> None:
        """Keep the first `num_pages` pages and nothing after them. Every layer must be `is_paged`."""
        for layer in self.layers:
            layer.truncate(num_pages)
        del self.chains[num_pages:]
        self.num_tokens = num_pages * self.page_size

    def follow(self, other: Sequence) -> None:
        """Take on `other`'s past. This sequence is new; afterwards the two are independent."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.follow(theirs)
        self._append(other.tokens, other.origins, other.past.from_store[: other.num_tokens])
        self.past.chains += other.chains

    def become(self, other: Sequence) -> None:
        """Go on with the past of `other`, which holds these tokens, or these and more, and is given up."""
        self.past, self._tokens, self.num_tokens = other.past, other._tokens, other.num_tokens

    def count_as(self, other: Sequence) -> None:
        """Count every token as from the store that `other`, which begins with the same tokens, counts so."""
        self.past.from_store[: self.num_tokens] = other.past.from_store[: self.num_tokens]

    def close(self) -> None:
        """Give up all pages. They stay in the store as cache."""
        self.past.close()
        self.num_tokens = 0


class Snapshot:
    """A point in a sequence's past."""

    __slots__ = ("layers", "num_chains", "num_tokens", "past")

    def __init__(self, num_tokens: int, num_chains: int, layers: list[Any], past: Past) -> None:
        self.num_tokens, self.num_chains, self.layers, self.past = num_tokens, num_chains, layers, past


@dataclass(frozen=True, slots=True)
class StepPoint:
    """The point before a decode step of one sequence, to undo it. A step that fills a page needs a snapshot: layers
    seal it one by one, and one may fail after others have."""

    place: Place
    snapshot: Snapshot | None

    @classmethod
    def before(cls, sequence: Sequence) -> StepPoint:
        fills = sequence.tail_len + 1 == sequence.page_size
        return cls(sequence.place, sequence.snapshot() if fills else None)

    def restore(self, sequence: Sequence) -> None:
        if self.snapshot is not None:
            sequence.rollback(self.snapshot)
        else:
            sequence.undo_step(self.place[1])
