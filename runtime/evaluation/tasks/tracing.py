"""RULER's variable tracking (vt): which variables got a value, directly or from one another?

Differs from RULER: the solved example has five lines of noise.
"""

from __future__ import annotations

import itertools
import random
import string

from ..texts import Texts
from .fit import Fit
from .haystack import NOISE, Endless, scatter
from .invented import unique
from .sample import Sample, Task, longest
from .scores import all_of

_HOPS = 4
_EXAMPLE_LINES = 5
_EXAMPLE_VALUE = "12345"
_INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text."


def question(value: str) -> str:
    return f"Question: Find all variables that are assigned the value {value} in the text above."


def prefix(value: str) -> str:
    return (
        f" Answer: According to the chain(s) of variable assignment in the text above, {_HOPS + 1} variables are "
        f"assigned the value {value}, they are:"
    )


def chain(names: list[str], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in itertools.pairwise(names))]


def build(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    example = _example(rng)
    value = str(rng.randrange(10_000, 99_999))
    names = _names(rng, 5)
    placed = _places(rng, chain(names, value))
    noise = Endless(itertools.repeat(NOISE))
    gold = f" {' '.join(names)}"

    def sample(lines: int) -> Sample:
        context = example + _text(scatter(noise.take(lines), placed))
        return Sample(context, question(value), prefix(value), tuple(names), gold)

    return longest(sample, fit)


def _example(rng: random.Random) -> str:
    names = _names(rng, 3)
    lines = scatter([NOISE] * _EXAMPLE_LINES, _places(rng, chain(names, _EXAMPLE_VALUE)))
    reply = f"{prefix(_EXAMPLE_VALUE)} {' '.join(names)}"
    return f"{_text(lines)}\n{question(_EXAMPLE_VALUE)}{reply}\n\n"


def _text(lines: list[str]) -> str:
    return f"{_INSTRUCTION}\n\n" + "\n".join(lines)


def _places(rng: random.Random, lines: list[str]) -> list[tuple[float, str]]:
    """Put the lines at random depths, in their order."""
    return list(zip(sorted(rng.random() for _ in lines), lines, strict=True))


def _names(rng: random.Random, letters: int) -> list[str]:
    """Make names of capitals that do not spell a part of the other words."""
    words = (NOISE + _INSTRUCTION).upper()
    drawn = unique(lambda: "".join(rng.choices(string.ascii_uppercase, k=letters)))
    return list(itertools.islice((name for name in drawn if name not in words), _HOPS + 1))


VT = Task("vt", build, 30, all_of)
