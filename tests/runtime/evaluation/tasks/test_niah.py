"""Needle tasks are worded as RULER words them, and hide what their row of the table says."""

from __future__ import annotations

import random
import re

import pytest
from task_samples import TEXTS, build, count

from stratakv.runtime.evaluation.tasks import TASKS, Fit
from stratakv.runtime.evaluation.tasks.niah import join


def test_the_single_needle_template_is_rulers() -> None:
    sample = TASKS["niah_single_1"].build(random.Random(7), TEXTS, Fit(120, count))
    (value,) = sample.references
    (key,) = re.findall(r"for ([a-z]+-[a-z]+) ", sample.question)
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    needle = f"One of the special magic numbers for {key} is: {value}."
    assert sorted(sample.context.splitlines()[1:]) == sorted([needle, noise])
    assert sample.context.splitlines()[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    assert sample.question == f"What is the special magic number for {key} mentioned in the provided text?"
    assert sample.prefix == f" The special magic number for {key} mentioned in the provided text is"
    assert sample.gold == f" {value}."
    assert re.fullmatch(r"\d{7}", value)


def test_several_queries_are_asked_in_the_plural() -> None:
    sample = build(TASKS["niah_multiquery"], 0, 1_000)
    assert sample.context.startswith(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
    )
    asked = r"\S+-\S+, \S+-\S+, \S+-\S+, and \S+-\S+"
    assert re.fullmatch(
        rf"What are all the special magic numbers for {asked} mentioned in the provided text\?", sample.question
    )
    assert re.fullmatch(r" \d{7}, \d{7}, \d{7}, and \d{7}\.", sample.gold)
    keys = re.findall(r"[a-z]+-[a-z]+", sample.question)
    told = dict(re.findall(r"magic numbers for (\S+) is: (\d+)\.", sample.context))
    assert [told[key] for key in keys] == list(sample.references)


NUMBER, UUID = r"\d{7}", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
WORDS = r"[a-z]+-[a-z]+"


@pytest.mark.parametrize(
    ("name", "key", "value", "keys", "values"),
    [
        ("single_3", WORDS, UUID, 1, 1),
        ("multikey_1", WORDS, NUMBER, 4, 1),
        ("multivalue", WORDS, NUMBER, 1, 4),
        ("multiquery", WORDS, NUMBER, 4, 1),
    ],
    ids=["single_3", "multikey_1", "multivalue", "multiquery"],
)
def test_as_many_needles_as_the_row_says_are_in_the_novel(
    name: str, key: str, value: str, keys: int, values: int
) -> None:
    sample = build(TASKS[f"niah_{name}"], 0, 1_000)
    told = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", sample.context)
    assert len(told) == len({*told}) == keys * values
    assert len({key for key, _ in told}) == keys
    assert all(re.fullmatch(key, one) and re.fullmatch(value, other) for one, other in told)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("multikey_2", WORDS, NUMBER), ("multikey_3", UUID, UUID)],
    ids=["multikey_2", "multikey_3"],
)
def test_every_other_line_is_the_needle_of_another_key(name: str, key: str, value: str) -> None:
    sample = build(TASKS[f"niah_{name}"], 0, 1_000)
    _, *lines = sample.context.splitlines()
    told = dict(re.findall(rf"^One of the special magic \w+ for ({key}) is: ({value})\.$", "\n".join(lines), re.M))
    assert len(told) == len(lines) > 10
    (asked,) = re.findall(r"for (\S+) mentioned", sample.question)
    assert told[asked] == sample.references[0]


def test_words_are_joined_as_ruler_joins_them() -> None:
    assert [join(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a, and b", "a, b, and c"]
