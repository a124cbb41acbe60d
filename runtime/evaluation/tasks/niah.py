"""RULER's eight needle tasks (arXiv 2404.06654): sentences with magic values, hidden in other text.

    task              haystack          key    value    keys, values, queries
    niah_single_1     noise             word   number   1, 1, 1
    niah_single_2     novel             word   number   1, 1, 1
    niah_single_3     novel             word   uuid     1, 1, 1
    niah_multikey_1   novel             word   number   4, 1, 1
    niah_multikey_2   other needles     word   number   1, 1, 1
    niah_multikey_3   other needles     uuid   uuid     1, 1, 1
    niah_multivalue   novel             word   number   1, 4, 1
    niah_multiquery   novel             word   number   4, 1, 4

Differs from RULER: Austen's novels for Paul Graham's essays.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ..texts import Texts
from .fit import Fit
from .haystack import NOISE, Endless, novel, scatter
from .invented import number, unique, uuid4, word_key
from .sample import Sample, Task, depth_of, longest
from .scores import all_of

_MAX_NEW_TOKENS = 128
_NUM_DEPTHS = 40

Haystack = Literal["noise", "novel", "needles"]
Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One row of the table above."""

    haystack: Haystack
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    """The number of values per key, each in a needle of its own."""
    queries: int = 1

    @property
    def is_single(self) -> bool:
        """True if the reply is one value: RULER then asks in the singular."""
        return self.queries * self.values == 1


def needle(kind: Kind, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def instruction(kind: Kind, is_single: bool) -> str:
    if is_single:
        one = kind[:-1]
        hidden, memorize = f"A special magic {one} is hidden within the following text.", f"about the {one} afterwards."
    else:
        hidden = f"Some special magic {kind} are hidden within the following text."
        memorize = f"about the {kind} afterwards."
    return f"{hidden} Make sure to memorize it. I will quiz you {memorize}"


def question(kind: Kind, query: str, is_single: bool) -> str:
    asked = f"What is the special magic {kind[:-1]}" if is_single else f"What are all the special magic {kind}"
    return f"{asked} for {query} mentioned in the provided text?"


def prefix(kind: Kind, query: str, is_single: bool) -> str:
    what, verb = (kind[:-1], "is") if is_single else (kind, "are")
    return f" The special magic {what} for {query} mentioned in the provided text {verb}"


def join(words: list[str]) -> str:
    """Join words as RULER does: `a`, `a, and b`, `a, b, and c`."""
    return f"{', '.join(words[:-1])}, and {words[-1]}" if len(words) > 1 else words[0]


def build(recipe: Recipe, rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    keys, values = _values(recipe.key, rng, texts), _values(recipe.value, rng, texts)
    told = {key: list(itertools.islice(values, recipe.values)) for key in itertools.islice(keys, recipe.keys)}
    asked = rng.sample(list(told), recipe.queries)
    needles = [needle(recipe.value, key, value) for key in told for value in told[key]]
    rng.shuffle(needles)
    placed = list(zip(_depths(recipe.haystack, len(needles), rng), needles, strict=True))
    references = tuple(value for key in asked for value in told[key])
    others = (needle(recipe.value, key, value) for key, value in zip(keys, values, strict=False))
    stream = _stream(recipe.haystack, rng, texts, others)
    joint = " " if recipe.haystack == "novel" else "\n"
    query, single = join(asked), recipe.is_single

    def sample(pieces: int) -> Sample:
        text = joint.join(scatter(stream.take(pieces), placed))
        context = f"{instruction(recipe.value, single)}\n{text}"
        return Sample(
            context=context,
            question=question(recipe.value, query, single),
            prefix=prefix(recipe.value, query, single),
            references=references,
            gold=f" {join(list(references))}.",
            depth=depth_of(needle(recipe.value, asked[0], references[0]), context) if single else None,
        )

    return longest(sample, fit)


def _values(kind: Kind, rng: random.Random, texts: Texts) -> Iterator[str]:
    draws = {"words": lambda: word_key(rng, texts), "numbers": lambda: number(rng), "uuids": lambda: uuid4(rng)}
    return unique(draws[kind])


def _depths(haystack: Haystack, count: int, rng: random.Random) -> list[float]:
    if haystack == "novel":
        return [step / (_NUM_DEPTHS - 1) for step in rng.sample(range(_NUM_DEPTHS), count)]
    return [rng.random() for _ in range(count)]


def _stream(haystack: Haystack, rng: random.Random, texts: Texts, others: Iterator[str]) -> Endless[str]:
    if haystack == "noise":
        return Endless(itertools.repeat(NOISE))
    return novel(rng, texts) if haystack == "novel" else Endless(others)


def _task(name: str, recipe: Recipe) -> Task:
    return Task(f"niah_{name}", partial(build, recipe), _MAX_NEW_TOKENS, all_of)


NIAH = (
    _task("single_1", Recipe(haystack="noise")),
    _task("single_2", Recipe(haystack="novel")),
    _task("single_3", Recipe(haystack="novel", value="uuids")),
    _task("multikey_1", Recipe(haystack="novel", keys=4)),
    _task("multikey_2", Recipe(haystack="needles")),
    _task("multikey_3", Recipe(haystack="needles", key="uuids", value="uuids")),
    _task("multivalue", Recipe(haystack="novel", values=4)),
    _task("multiquery", Recipe(haystack="novel", keys=4, queries=4)),
)
