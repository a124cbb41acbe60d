"""Questions with certain answers in the place of RULER's SQuAD (qa_1) and HotpotQA (qa_2).

Facts about invented people stand among the sentences of a novel's paragraphs (the pattern of bAbI and BABILong,
arXiv 2406.10149), which are given as RULER gives its documents. One hop: a person's town. Two: the town of a
person's employer.
"""

from __future__ import annotations

import random

from ..texts import Texts
from .fit import Fit
from .haystack import novel, paragraphs, sentences
from .invented import distinct, person, town
from .sample import Sample, Task, depth_of, longest
from .scores import any_of

_MAX_NEW_TOKENS = 32
_PEOPLE = 6
"""The number of people: the first is asked about, the others' facts distract."""
_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
_LIVES = (
    "{} has a house in the town of {}.",
    "{} has lived for many years in the town of {}.",
    "{} came home at last to the town of {}.",
)
_WORKS = (
    "{} keeps the books of {}.",
    "{} drives the carriage of {}.",
    "{} copies letters for {}.",
)


def one_hop(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    people, towns = distinct(lambda: person(rng), _PEOPLE), distinct(lambda: town(rng), _PEOPLE)
    facts = _facts(rng, _LIVES, people, towns)
    return _build(rng, texts, fit, facts, towns, f"In which town does {people[0]} live?", one_place=True)


def two_hops(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    people, towns = distinct(lambda: person(rng), 2 * _PEOPLE), distinct(lambda: town(rng), _PEOPLE)
    workers, employers = people[:_PEOPLE], people[_PEOPLE:]
    facts = _facts(rng, _LIVES, employers, towns) + _facts(rng, _WORKS, workers, employers)
    query = f"In which town does the employer of {workers[0]} live?"
    return _build(rng, texts, fit, facts, towns, query, one_place=False)


def _facts(rng: random.Random, forms: tuple[str, ...], subjects: list[str], objects: list[str]) -> list[str]:
    return [rng.choice(forms).format(*pair) for pair in zip(subjects, objects, strict=True)]


def _build(
    rng: random.Random, texts: Texts, fit: Fit, facts: list[str], towns: list[str], query: str, *, one_place: bool
) -> Sample:
    """Build the text. The first town is the answer, and the first fact tells it."""
    stream = novel(rng, texts, paragraphs, without=towns)
    placed = [(rng.random(), fact) for fact in facts]

    def sample(documents: int) -> Sample:
        context = (
            f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{_documents(stream.take(documents), placed)}"
        )
        return Sample(
            context=context,
            question=f"{_INSTRUCTION}\n\nQuestion: {query}",
            prefix=" Answer:",
            references=(towns[0],),
            gold=f" {towns[0]}",
            depth=depth_of(facts[0], context) if one_place else None,
        )

    return longest(sample, fit)


def _documents(texts: list[str], placed: list[tuple[float, str]]) -> str:
    documents = [sentences(text) for text in texts]
    for depth, fact in placed:
        place = depth * len(documents)
        document = documents[int(place)]
        document.insert(int(place % 1 * (len(document) + 1)), fact)
    return "\n\n".join(f"Document {number}:\n{' '.join(document)}" for number, document in enumerate(documents, 1))


QA = (Task("qa_1", one_hop, _MAX_NEW_TOKENS, any_of), Task("qa_2", two_hops, _MAX_NEW_TOKENS, any_of))
