"""Invented things that no model has read before: keys, values, people and towns."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator

from ..texts import Texts


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_TRIES = 10_000
_FIRST_NAMES = _split(
    "Abelin Ansa Bero Corvin Dagna Edwyn Elspa Fenja Garrit Hesper Ilka Joram Kasimira Lorne Maudlin Nerys "
    "Odran Perrin Quilla Rufin Sunniva Tobin Ulrica Verity Wystan Ysolde"
)
_ONSETS = _split("B Br Ch D Dr F Gl Gr H K Kr L M N P Pl R S Sk Sn St T Tr V Z")
_MIDDLES = _split("ab ad ag al am an ar ax eb ed el em en er ib id ik il in ir ob od ol om on or ub ud ul un ur")
_TOWN_ENDS = _split("bury croft dale ey fell garth ham holm kirk mark mere ness stow thwaite ton wick worth")
_FAMILY_ENDS = _split("anek bard dottir eson ette ifer ilov man olt osky son stein ula vik witz")


def unique(draw: Callable[[], str]) -> Iterator[str]:
    """Yield draws without repeats. Raises ValueError when no new one comes any more."""
    seen: set[str] = set()
    while True:
        seen.add(drawn := _new(draw, lambda candidate: candidate not in seen))
        yield drawn


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """Make `count` draws, none of which contains another: finding one in a reply does not find a second."""
    found: list[str] = []
    for _ in range(count):
        found.append(_new(draw, lambda candidate: not any(_nested(candidate, other) for other in found)))
    return found


def _new(draw: Callable[[], str], is_new: Callable[[str], bool]) -> str:
    for _ in range(_TRIES):
        if is_new(candidate := draw()):
            return candidate
    raise ValueError(f"no new value in {_TRIES} draws; the last was {candidate!r}")


def _nested(one: str, other: str) -> bool:
    return one.lower() in other.lower() or other.lower() in one.lower()


def word_key(rng: random.Random, texts: Texts) -> str:
    """A key such as RULER's `adjective-noun`."""
    adjectives, nouns = texts.words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def number(rng: random.Random, digits: int = 7) -> str:
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def uuid4(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def person(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST_NAMES)} {_stem(rng)}{rng.choice(_FAMILY_ENDS)}"


def town(rng: random.Random) -> str:
    return _stem(rng) + rng.choice(_TOWN_ENDS)


def _stem(rng: random.Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_MIDDLES)
