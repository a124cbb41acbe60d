"""A sequence: its token log, its chain of page names, and one cache per layer.

What is stored of a text was turned by the rotary tables of one reach (`rope`), all of it. A text that grows beyond that
is computed again, and its sequence goes on with another `Past`; the old one lives on as long as a `Snapshot` leads back
to it (docs/decisions/0034).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...storage import CHAIN_BYTES, ROOT, next_chain
from ..api.errors import ConversationError
from ..layers.base import LayerKV

PROMPT, GENERATED = 0, 1


@dataclass(frozen=True, slots=True)
class NamedPages:
    """Pages that tokens will fill at the end of a sequence, and their names. Made by `Sequence.name_pages` only.

    A name says which tokens a page's KV was computed from, for every conversation that will ever look. So whoever
    publishes pages asks first: `require_right`.
    """

    start: int
    """Pages before them."""
    length: int
    """Tokens of the sequence when they were named."""
    previous: bytes
    """Chain of the page before them."""
    chains: list[bytes]
    tokens: np.ndarray
    """uint32 `[pages, L]`."""
    salts: list[bytes]

    def __len__(self) -> int:
        return len(self.chains)

    def require_right(self, sequence: Sequence) -> None:
        """Raises ConversationError unless `sequence` still ends where these pages begin and their names are what their
        tokens give there: otherwise another call has changed it meanwhile."""
        here = sequence.last_chain
        is_there = (len(sequence.chains), sequence.num_tokens, here) == (self.start, self.length, self.previous)
        if not is_there or _chained(self.previous, self.tokens, self.salts) != self.chains:
            raise ConversationError(
                "a sequence was changed while its pages were computed; nothing of them is kept. "
                "Use a sequence from one call at a time"
            )


def _chained(previous: bytes, pages: np.ndarray, salts: list[bytes]) -> list[bytes]:
    chains = []
    for page, salt in zip(pages, salts, strict=True):
        previous = next_chain(previous, page, salt)
        chains.append(previous)
    return chains


def root_of(reach: int) -> bytes:
    """What the names of pages of that reach begin with: pages of one are never taken for pages of another."""
    if reach == 0:
        return ROOT
    return hashlib.blake2b(reach.to_bytes(8, "little"), digest_size=CHAIN_BYTES, person=b"reach").digest()


@dataclass(slots=True, eq=False, weakref_slot=True)
class Past:
    """What a sequence has in its layers, computed with the rotary tables of one reach."""

    reach: int
    layers: list[LayerKV] = field(default_factory=list)
    chains: list[bytes] = field(default_factory=list)
    origins: np.ndarray = field(default_factory=lambda: np.empty(1024, dtype=np.uint8))
    """Of the tokens, with room for more."""
    from_store: np.ndarray = field(default_factory=lambda: np.empty(1024, dtype=np.bool_))

    is_watched: bool = False
    """Its pages are given up when it is dropped (`pasts`)."""

    def close(self) -> None:
        """Give up all pages. They stay in the store as cache. Safe to call twice."""
        for layer in self.layers:
            layer.close()
        self.chains.clear()

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
    def last_chain(self) -> bytes:
        """What the next page's name goes on from."""
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

    def log(self, tokens: np.ndarray, origin: int, *, from_store: bool = False) -> None:
        needed = self.num_tokens + len(tokens)
        while needed > len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self.past.grow(needed)
        self._tokens[self.num_tokens : needed] = tokens
        self.past.origins[self.num_tokens : needed] = origin
        self.past.from_store[self.num_tokens : needed] = from_store
        self.num_tokens = needed

    def name_pages(self, tokens: np.ndarray, origin: int) -> NamedPages:
        """The whole pages in `tail + tokens`, if `tokens` of that origin come next."""
        length = self.num_tokens
        tokens = np.concatenate([self.tokens[self.num_sealed :], tokens.astype(np.uint32)])
        origins = np.full(len(tokens), origin, dtype=np.uint8)
        origins[: self.tail_len] = self.origins[self.num_sealed :]
        whole = len(tokens) // self.page_size
        pages = tokens[: whole * self.page_size].reshape(whole, self.page_size)
        salted = np.any(origins[: whole * self.page_size].reshape(whole, self.page_size), axis=1).tolist()
        salts = [self.salt if is_salted else b"" for is_salted in salted]
        previous = self.last_chain
        return NamedPages(len(self.chains), length, previous, _chained(previous, pages, salts), pages, salts)

    def commit(self, tokens: np.ndarray, origin: int, chains: list[bytes], *, from_store: bool = False) -> None:
        """`tokens` are in every layer, and have filled the pages named `chains`."""
        self.log(tokens, origin, from_store=from_store)
        self.past.chains += chains

    def snapshot(self) -> Snapshot:
        """Enough to come back to this point: what `rollback` takes."""
        return Snapshot(self.num_tokens, len(self.chains), [layer.snapshot() for layer in self.layers], self.past)

    def rollback(self, snapshot: Snapshot) -> None:
        """Drop everything after `snapshot`."""
        self.past, self.num_tokens = snapshot.past, snapshot.num_tokens
        del self.chains[snapshot.num_chains :]
        for layer, saved in zip(self.layers, snapshot.layers, strict=True):
            layer.rollback(saved)

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
        self.past.chains = list(other.chains)
        self.log(other.tokens, PROMPT)
        self.past.origins[: self.num_tokens] = other.origins
        self.past.from_store[: self.num_tokens] = other.past.from_store[: self.num_tokens]

    def become(self, other: Sequence) -> None:
        """Go on with the past of `other`, which holds these tokens, or these and more, and is given up."""
        self.past, self._tokens, self.num_tokens = other.past, other._tokens, other.num_tokens

    def count_as(self, other: Sequence) -> None:
        """Of every token say that it came from the store if `other` does, which begins with the same tokens."""
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
    """What it takes to undo a decode step of one sequence: how long its tail was, and a snapshot if the step fills a
    page. Layers seal it one by one, and one may fail after others have."""

    tail_len: int
    snapshot: Snapshot | None

    @classmethod
    def of(cls, sequence: Sequence, filled: NamedPages) -> StepPoint:
        return cls(sequence.tail_len, sequence.snapshot() if filled.chains else None)

    def restore(self, sequence: Sequence) -> None:
        if self.snapshot is not None:
            sequence.rollback(self.snapshot)
            return
        for layer in sequence.layers:
            layer.undo_step(self.tail_len, sequence.num_tokens)
