"""Look-ups in real text: a verse of the Bible by its citation, a play's line by the one before it.

Models have read these texts, so a right reply alone does not show that the context was used; compare with full
attention.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..texts import Speech, Texts
from .fit import Fit
from .haystack import Endless
from .sample import Sample, Task, depth_of, longest
from .scores import any_of

_REFERENCE_WORDS = 6
_GOLD_WORDS = 16
"""A reply may go on, but when the right one is forced, this much of it is compared."""
_FEWEST_LINE_WORDS = 5
_MAX_NEW_TOKENS = 64
_VERSE_INSTRUCTION = (
    "Memorize the following verses of the Bible. I will ask you afterwards how one of them begins, by its citation."
)
_PLAY_INSTRUCTION = "Memorize the following play. I will quote a line of it afterwards and ask you for the next one."


def verse(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    verses = texts.verses()
    start = rng.choice([place for place, (_, words) in enumerate(verses) if _verse_can_be_asked(words, words.lower())])
    ring, depth = verses[start:] + verses[:start], rng.random()

    def sample(count: int) -> Sample:
        shown = ring[:count]
        context = f"{_VERSE_INSTRUCTION}\n" + "\n".join(f"{citation} {words}" for citation, words in shown)
        text = context.lower()
        place = _nearest(range(count), depth, lambda place: _verse_can_be_asked(shown[place][1], text))
        citation, words = shown[place]
        return Sample(
            context=context,
            question=f"How does the verse {citation} begin?",
            prefix=f" The verse {citation} begins with the words:",
            references=(_beginning(words),),
            gold=f" {_beginning(words, _GOLD_WORDS)}",
            depth=depth_of(f"\n{citation} {words}", context),
        )

    return longest(sample, fit, limit=len(verses))


class Line(NamedTuple):
    words: str
    heading: str
    """The text above the line: the speaker at the start of a speech, the play's name at the start of the text."""
    goes_on: bool
    """True if the line above belongs to the same speech."""

    @property
    def text(self) -> str:
        return f"{self.heading}{self.words}"


def next_line(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    plays = texts.plays()
    name = rng.choice(sorted(plays))
    starts = [place for place, speech in enumerate(plays[name]) if _opens_with_a_pair(speech)]
    stream, depth = Endless(_lines(plays, name, rng.choice(starts))), rng.random()

    def sample(count: int) -> Sample:
        shown = stream.take(count)
        context = f"{_PLAY_INSTRUCTION}\n\n" + "\n".join(line.text for line in shown)
        text = context.lower()

        def can_be_asked(place: int) -> bool:
            return shown[place].goes_on and _line_can_be_asked(shown[place - 1].words, shown[place].words, text)

        place = _nearest(range(1, count), depth, can_be_asked)
        above, line = shown[place - 1].words, shown[place].words
        return Sample(
            context=context,
            question=f'Which line comes directly after the line "{above}" in the play?',
            prefix=" The next line is:",
            references=(_beginning(line),),
            gold=f" {line}",
            depth=depth_of(f"{above}\n{line}", context),
        )

    return longest(sample, fit, smallest=2, limit=sum(len(speech.lines) for play in plays.values() for speech in play))


def _lines(plays: dict[str, list[Speech]], first: str, start: int) -> Iterator[Line]:
    """Yield lines from a speech of the play on, then those of the other plays, round and round."""
    names = sorted(plays)
    at = names.index(first)
    while True:
        for name in names[at:] + names[:at]:
            above = f"{_title(name)}\n\n"
            for speech in plays[name][start:]:
                for place, words in enumerate(speech.lines):
                    yield Line(words, "" if place else f"{above}{speech.speaker}:\n", goes_on=place > 0)
                above = "\n"
            start = 0


def _title(name: str) -> str:
    """`a-winter-s-tale` -> `A WINTER'S TALE`"""
    return name.replace("-s-", "'s-").replace("-", " ").upper()


def _opens_with_a_pair(speech: Speech) -> bool:
    if len(speech.lines) < 2:
        return False
    above, line = speech.lines[:2]
    return _line_can_be_asked(above, line, f"{above}\n{line}".lower())


def _verse_can_be_asked(words: str, text: str) -> bool:
    return len(words.split()) >= _REFERENCE_WORDS and _stands_once(_beginning(words), text)


def _line_can_be_asked(above: str, line: str, text: str) -> bool:
    return min(len(above.split()), len(line.split())) >= _FEWEST_LINE_WORDS and (
        _stands_once(above, text) and _stands_once(_beginning(line), text)
    )


def _stands_once(words: str, lowered: str) -> bool:
    return lowered.count(words.lower()) == 1


def _beginning(words: str, count: int = _REFERENCE_WORDS) -> str:
    return " ".join(words.split()[:count]).rstrip(" ,;:.!?-")


def _nearest(places: range, depth: float, is_good: Callable[[int], bool]) -> int:
    """The good place closest to a depth, 0 to 1."""
    wanted = places.start + int(depth * len(places))
    for place in sorted(places, key=lambda place: abs(place - wanted)):
        if is_good(place):
            return place
    raise ValueError(f"none of {len(places)} verses or lines can be asked for; ask for a longer context")


QUOTING = (Task("verse", verse, _MAX_NEW_TOKENS, any_of), Task("next_line", next_line, _MAX_NEW_TOKENS, any_of))
