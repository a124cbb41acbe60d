"""The third question comes after two right answers, and what the model said stands in its own words only."""

from __future__ import annotations

import re

import pytest
from task_samples import build, count

from stratakv.runtime.evaluation.tasks import TASKS

LENGTHS = (700, 5_000)


def test_the_third_question_is_asked_after_two_right_answers() -> None:
    sample = build(TASKS["turns"], 0, 2_000)
    told = dict(re.findall(r"magic numbers for (\S+) is: (\d{7})\.", sample.context))
    assert len(told) == 4
    asked = []
    for user, reply in sample.earlier:
        (key,) = re.findall(r"What is the special magic number for (\S+) mentioned", user)
        assert reply == f" The special magic number for {key} mentioned in the provided text is {told[key]}."
        asked.append(key)
    (key,) = re.findall(r"What is the special magic number for (\S+) mentioned", sample.question)
    assert sample.gold == f" {told[key]}."
    assert len({*asked, key}) == 3


@pytest.mark.parametrize("length", LENGTHS)
def test_what_the_model_said_stands_nowhere_else_and_far_back(length: int) -> None:
    sample = build(TASKS["said"], 0, length)
    (asked, reply), (passage, read) = sample.earlier
    told = dict(re.findall(r"magic numbers for (\S+) is: (\d{7})\.", reply))
    (key,) = re.findall(r"special magic number for (\S+) that you gave", sample.question)
    assert len(told) == 3
    assert all(key in asked for key in told)
    assert sample.references == (told[key],)
    for value in told.values():
        assert value not in sample.context + asked + passage + read
    assert 0.25 < count(passage) / count(sample.prompt) < 0.45
    assert passage.startswith("The text goes on: ")


def test_which_of_the_numbers_is_asked_for_varies() -> None:
    places = set()
    for seed in range(30):
        sample = build(TASKS["said"], seed, 700)
        places.add(re.findall(r"\d{7}", sample.earlier[0].reply).index(sample.references[0]))
    assert places == {0, 1, 2}
