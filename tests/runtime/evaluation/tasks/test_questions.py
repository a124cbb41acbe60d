"""Questions are answered by one fact, or by two that lead on; the facts stand in numbered documents."""

from __future__ import annotations

import re

from task_samples import build

from stratakv.runtime.evaluation.tasks import TASKS


def test_one_of_six_people_lives_in_the_town_that_is_asked_for() -> None:
    sample = build(TASKS["qa_1"], 1, 2_000)
    (asked,) = re.findall(r"In which town does (.*) live\?", sample.question)
    lives = r"([A-Z]\w+ [A-Z]\w+) (?:has a house in|has lived for many years in|came home at last to) the town of (\w+)"
    told = dict(re.findall(lives, sample.context))
    assert len(told) == len({*told.values()}) == 6
    assert sample.references == (told[asked],)
    assert sample.question.startswith("Answer the question based on the given documents. Only give me the answer")


def test_the_second_hop_leads_to_the_answer() -> None:
    sample = build(TASKS["qa_2"], 1, 2_000)
    (worker,) = re.findall(r"the employer of (.*) live\?", sample.question)
    (employer,) = re.findall(
        rf"{worker} (?:keeps the books of|drives the carriage of|copies letters for) (.*?)\.", sample.context
    )
    assert re.search(rf"{employer} [a-z ]* the town of {sample.references[0]}\.", sample.context)
    assert re.findall(r"^Document (\d+):$", sample.context, re.MULTILINE)[:3] == ["1", "2", "3"]
