"""Context-intensive tasks: the reply lists many things that stand all over the context.

    json          records of invented people, sentences in a novel; the reply is a JSON list (the manner of Text2JSON)
    multineedle   needles of three kinds; the reply lists the values of one kind
    table         a long Markdown table; the reply lists one column of the rows that another column selects

A method that reads too little of the context drops items here before a single needle is lost.
"""

from __future__ import annotations

import json
import random
from itertools import islice

from ..texts import Texts
from .fit import Fit
from .haystack import novel, scatter
from .invented import distinct, number, person, town, unique, word_key
from .sample import Sample, Task, longest
from .scores import all_of

_MOST_ITEMS = 16
_FEWEST_ITEMS = 4
_TRADES = ("baker", "cooper", "fiddler", "glazier", "miller", "saddler", "tanner", "weaver")
_RECORD_FORMS = (
    "{name}, a {trade} by trade, had come from the town of {town}.",
    "From the town of {town} came the {trade} {name}.",
    "The {trade} {name} was born in the town of {town}.",
)
_KINDS = ("harbour", "orchard", "quarry")


def records(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    count = _items(fit.tokens // 128)
    names, towns = distinct(lambda: person(rng), count), distinct(lambda: town(rng), count)
    told = [
        rng.choice(_RECORD_FORMS).format(name=name, town=town, trade=rng.choice(_TRADES))
        for name, town in zip(names, towns, strict=True)
    ]
    gold = json.dumps([{"name": name, "town": town} for name, town in zip(names, towns, strict=True)])
    return _hidden(
        rng,
        texts,
        fit,
        told,
        instruction="The following text mentions people with their trade and the town they come from. Memorize them. "
        "I will ask you for all of them afterwards.",
        question="List every person whose trade and town are mentioned in the text above, in order of appearance, as "
        'a JSON list of objects with the keys "name" and "town". Reply with the JSON only.',
        prefix=" JSON:",
        references=(*names, *towns),
        gold=gold,
    )


def needles(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    asked = rng.choice(_KINDS)
    others = [kind for kind in _KINDS if kind != asked]
    count = _items(fit.tokens // 96)
    kinds = [asked] * count + [rng.choice(others) for _ in range(count // 2)]
    rng.shuffle(kinds)
    keys, values = unique(lambda: word_key(rng, texts)), list(islice(unique(lambda: number(rng)), len(kinds)))
    told = [
        f"The special magic number for the {kind} of {key} is: {value}."
        for kind, key, value in zip(kinds, keys, values, strict=False)
    ]
    references = tuple(value for kind, value in zip(kinds, values, strict=True) if kind == asked)
    return _hidden(
        rng,
        texts,
        fit,
        told,
        instruction="Special magic numbers of harbours, orchards and quarries are hidden within the following text. "
        "Make sure to memorize them. I will quiz you about the numbers afterwards.",
        question=f"What are the special magic numbers for every {asked} mentioned in the provided text? List them in "
        "order of appearance.",
        prefix=f" The special magic numbers for every {asked}, in order of appearance, are:",
        references=references,
        gold=f"{', '.join(references)}.",
    )


def _items(wanted: int) -> int:
    """The number of items: fewer where the context is short, so that a haystack remains."""
    return max(_FEWEST_ITEMS, min(_MOST_ITEMS, wanted))


def _hidden(
    rng: random.Random,
    texts: Texts,
    fit: Fit,
    told: list[str],
    *,
    instruction: str,
    question: str,
    prefix: str,
    references: tuple[str, ...],
    gold: str,
) -> Sample:
    """Scatter the sentences `told` in a novel, in their order."""
    stream = novel(rng, texts, without=references)
    placed = list(zip(sorted(rng.random() for _ in told), told, strict=True))

    def sample(pieces: int) -> Sample:
        context = f"{instruction}\n{' '.join(scatter(stream.take(pieces), placed))}"
        return Sample(context, question, prefix, references, f" {gold}")

    return longest(sample, fit)


def table(rng: random.Random, texts: Texts, fit: Fit) -> Sample:
    asked, seed = rng.choice(_TRADES), rng.getrandbits(64)

    def sample(rows: int) -> Sample:
        lines, badges = _table(random.Random(seed), asked, rows)
        return Sample(
            context="Memorize the following table of workers. I will ask you about it afterwards.\n\n"
            + "\n".join(lines),
            question=f"List the badge numbers of all workers in the table above whose trade is {asked}, in the order "
            "of the table.",
            prefix=f" The badge numbers of all workers whose trade is {asked} are:",
            references=tuple(badges),
            gold=f" {', '.join(badges)}.",
        )

    return longest(sample, fit, smallest=_FEWEST_ITEMS)


def _table(rng: random.Random, asked: str, rows: int) -> tuple[list[str], list[str]]:
    """Make (lines of the table, badges of the asked trade in their order)."""
    hits = set(rng.sample(range(rows), min(rows, _items(rows // 4))))
    others = [trade for trade in _TRADES if trade != asked]
    badges = list(islice(unique(lambda: number(rng, digits=6)), rows))
    lines = ["| Name | Town | Trade | Badge |", "| --- | --- | --- | --- |"]
    for row, badge in enumerate(badges):
        trade = asked if row in hits else rng.choice(others)
        lines.append(f"| {person(rng)} | {town(rng)} | {trade} | {badge} |")
    return lines, [badges[row] for row in sorted(hits)]


INTENSIVE = (
    Task("json", records, 400, all_of, intensive=True),
    Task("multineedle", needles, 176, all_of, intensive=True),
    Task("table", table, 176, all_of, intensive=True),
)
