"""Replies that list many things: all of one kind, in their order, and none by accident."""

from __future__ import annotations

import json
import re

import pytest
from task_samples import build

from stratakv.runtime.evaluation.tasks import TASKS
from stratakv.runtime.evaluation.tasks.haystack import sentences


def test_records_are_a_json_list_in_order_of_appearance() -> None:
    sample = build(TASKS["json"], 0, 3_000)
    records = json.loads(sample.gold)
    assert len(records) == 16
    places = [sample.context.index(record["name"]) for record in records]
    assert places == sorted(places)
    for record in records:
        (sentence,) = [piece for piece in sentences(sample.context) if record["name"] in piece]
        assert record["town"] in sentence


def test_needles_of_other_kinds_are_not_listed() -> None:
    sample = build(TASKS["multineedle"], 0, 3_000)
    (asked,) = re.findall(r"for every (\w+)", sample.question)
    told = re.findall(r"magic number for the (\w+) of \S+ is: (\d+)\.", sample.context)
    assert [value for kind, value in told if kind == asked] == list(sample.references)
    assert len(told) == 24


def test_the_column_is_that_of_the_asked_trade() -> None:
    sample = build(TASKS["table"], 0, 3_000)
    (trade,) = re.findall(r"whose trade is (\w+),", sample.question)
    rows = [line.strip("| ").split(" | ") for line in sample.context.splitlines() if line.startswith("| ")][2:]
    assert [badge for _, _, kind, badge in rows if kind == trade] == list(sample.references)
    assert len(rows) > 4 * len(sample.references)


@pytest.mark.parametrize(("length", "people"), [(450, 4), (1_000, 7), (5_000, 16)])
def test_a_short_context_tells_of_fewer_people(length: int, people: int) -> None:
    assert len(json.loads(build(TASKS["json"], 0, length).gold)) == people
