"""Questions late in a conversation, whose earlier turns are given (the golden context of SCBench, arXiv 2412.10319).

turns   four keys' numbers are hidden in a novel. Two are asked for and answered rightly; the third question is
        the task's.
said    in an earlier turn the model gave three keys a number each. A passage of the novel follows, longer than a
        budget of a quarter of the context; then one of the numbers is asked for. Nothing but the model's own
        words tells it, and their KV comes from the reader's decoding.
"""

from __future__ import annotations

import random
from itertools import islice

from ..texts import Texts
from . import niah
from .fit import Fit
from .haystack import novel, scatter
from .invented import number, unique, word_key
from .sample import Exchange, Sample, Task, depth_of, longest
from .scores import all_of

_MAX_NEW_TOKENS = 32
_KIND: niah.Kind = "numbers"
_HIDDEN = 4
_ANSWERED = 2
"""The number of turns before the question of `turns`."""
_SAID = 3
_PASSAGE = 1 / 3
"""The share of the text of `said` that comes after the model's statement."""
_INSTRUCTION = "Read the following text. I will talk with you about it, and ask you about what we said."


def turns(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    pairs = _pairs(rng, texts, _HIDDEN)
    needles = [niah.needle(_KIND, *pair) for pair in pairs]
    placed = [(rng.random(), needle) for needle in needles]
    *answered, (key, value) = rng.sample(pairs, _ANSWERED + 1)
    earlier = tuple(Exchange(_question(key), f"{_prefix(key)} {value}.") for key, value in answered)
    stream = novel(rng, texts)

    def sample(pieces: int) -> Sample:
        text = " ".join(scatter(stream.take(pieces), placed))
        context = f"{niah.instruction(_KIND, is_single=False)}\n{text}"
        return Sample(
            context=context,
            question=_question(key),
            prefix=_prefix(key),
            references=(value,),
            gold=f" {value}.",
            depth=depth_of(niah.needle(_KIND, key, value), context),
            earlier=earlier,
        )

    return longest(sample, fit)


def said(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    pairs = _pairs(rng, texts, _SAID)
    key, value = rng.choice(pairs)
    asked = f"Give each of these a special magic number: {niah.join([key for key, _ in pairs])}."
    stated = Exchange(asked, "".join(f" {niah.needle(_KIND, *pair)}" for pair in pairs))
    stream = novel(rng, texts)

    def sample(pieces: int) -> Sample:
        text = stream.take(pieces)
        cut = pieces - round(_PASSAGE * pieces)
        more = f"The text goes on: {' '.join(text[cut:])}\nTell me when you have read this."
        return Sample(
            context=f"{_INSTRUCTION}\n{' '.join(text[:cut])}",
            question=f"What is the special magic number for {key} that you gave?",
            prefix=f" The special magic number for {key} that I gave is",
            references=(value,),
            gold=f" {value}.",
            earlier=(stated, Exchange(more, " I have read it.")),
        )

    return longest(sample, fit)


def _pairs(rng: random.Random, texts: Texts, count: int) -> list[tuple[str, str]]:
    """Keys and their values, all different."""
    keys, values = unique(lambda: word_key(rng, texts)), unique(lambda: number(rng))
    return list(islice(zip(keys, values, strict=False), count))


def _question(key: str) -> str:
    return niah.question(_KIND, key, is_single=True)


def _prefix(key: str) -> str:
    return niah.prefix(_KIND, key, is_single=True)


DIALOGUE = (
    Task("turns", turns, _MAX_NEW_TOKENS, all_of, turns=_ANSWERED),
    Task("said", said, _MAX_NEW_TOKENS, all_of, turns=2),
)
