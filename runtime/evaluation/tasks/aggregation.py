"""RULER's aggregation tasks: the most common words of a list (cwe), the most frequent of a coded text (fwe).

Differs from RULER: no word of the list contains one that is asked for, so the score cannot be hit by accident;
when the word lists run out, the novels' words go on.
"""

from __future__ import annotations

import math
import random
import re
import string
from itertools import islice

from ..texts import Texts
from .fit import Fit
from .invented import distinct, unique
from .sample import Sample, Task, longest
from .scores import all_of

_COMMON = 10
_SHORT_TOKENS = 3_500
"""Contexts of less than about 4K repeat their words fewer times and have a smaller example."""
_TOKENS_PER_ENTRY = 3
"""The fewest tokens of `12. word `."""
_WORD = re.compile(r"\b[a-z]{4,}\b")
_CWE_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often."
)
_CWE_QUESTION = f"Question: What are the {_COMMON} most common words in the above list?"
_CWE_PREFIX = f" Answer: The top {_COMMON} words that appear most often in the list are:"

_CODED_LETTERS = 6
_EXPONENT = 2.0
_ZETA = math.pi**2 / 6
_FEWEST_CODED = 60
"""The fewest coded words, so that the third one comes more often than the fourth."""
_FWE_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
    "appeared coded words."
)
_FWE_QUESTION = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
_FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"


def common_words(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    example_words, example_times, times = (20, (3, 1), (6, 1)) if fit.tokens < _SHORT_TOKENS else (40, (10, 3), (30, 3))
    pool = _pool(rng, texts, example_words + fit.tokens // (_TOKENS_PER_ENTRY * times[1]))
    common = distinct(lambda: rng.choice(pool), _COMMON)
    spare = [word for word in pool if not any(part in word for part in common)]
    shown, others = spare[:example_words], spare[example_words:]
    solved = numbered(shown[:_COMMON])
    example = f"{_words(rng, shown, example_times)}\n{_CWE_QUESTION}{_CWE_PREFIX} {solved}\n"
    seed = rng.getrandbits(64)

    def sample(rare: int) -> Sample:
        context = example + _words(random.Random(seed), common + others[:rare], times)
        return Sample(context, _CWE_QUESTION, _CWE_PREFIX, tuple(common), f" {numbered(common)}")

    return longest(sample, fit, limit=len(others))


def numbered(words: list[str]) -> str:
    return " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))


def _words(rng: random.Random, words: list[str], times: tuple[int, int]) -> str:
    """The first ten words and the others, each repeated so many times, in disorder."""
    repeated = words[:_COMMON] * times[0] + words[_COMMON:] * times[1]
    rng.shuffle(repeated)
    return f"{_CWE_INSTRUCTION}\n{numbered(repeated)}"


def _pool(rng: random.Random, texts: Texts, wanted: int) -> list[str]:
    adjectives, nouns = texts.words()
    pool = sorted({word for word in (*adjectives, *nouns) if _WORD.fullmatch(word)})
    rng.shuffle(pool)
    if len(pool) < wanted:
        known = set(pool)
        further = sorted({word for book in texts.novels().values() for word in _WORD.findall(book)} - known)
        rng.shuffle(further)
        pool += further
    return pool


def frequent_words(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    coded = unique(lambda: "".join(rng.choices(string.ascii_lowercase, k=_CODED_LETTERS)))
    vocabulary = ["...", *islice(coded, max(10, fit.tokens // 50))]
    frequent, seed = vocabulary[1:4], rng.getrandbits(64)

    def sample(words: int) -> Sample:
        text = " ".join(_coded_text(random.Random(seed), vocabulary, words))
        gold = f" {', '.join(frequent)}"
        return Sample(f"{_FWE_INSTRUCTION} {text}", _FWE_QUESTION, _FWE_PREFIX, tuple(frequent), gold)

    return longest(sample, fit, smallest=_FEWEST_CODED)


def _coded_text(rng: random.Random, vocabulary: list[str], words: int) -> list[str]:
    """A coded text by Zipf's law: the word of rank k comes words / (k^2 zeta(2)) times."""
    text = [word for rank, word in enumerate(vocabulary, 1) for _ in range(int(words * rank**-_EXPONENT / _ZETA))]
    rng.shuffle(text)
    return text


CWE = Task("cwe", common_words, 120, all_of)
FWE = Task("fwe", frequent_words, 50, all_of)
