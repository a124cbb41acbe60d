"""The words that are asked for are the common ones, and no other word holds one of them."""

from __future__ import annotations

import re

import pytest
from places import EXCERPT
from task_samples import build

from stratakv.runtime.evaluation.tasks import TASKS
from stratakv.runtime.evaluation.texts import Texts


@pytest.mark.parametrize(("length", "times"), [(1_000, (6, 1)), (5_000, (30, 3))])
def test_common_words_are_the_common_ones(length: int, times: tuple[int, int]) -> None:
    sample = build(TASKS["cwe"], 0, length)
    example, text = sample.context.rsplit("Memorize the ones that appear most often.\n", 1)
    listed = re.findall(r"\d+\. ([a-z]+)", text)
    assert {listed.count(word) for word in sample.references} == {times[0]}
    assert {listed.count(word) for word in set(listed) - set(sample.references)} == {times[1]}
    assert not any(word in example for word in sample.references)


def test_frequent_words_follow_in_their_order() -> None:
    sample = build(TASKS["fwe"], 0, 1_000)
    words = re.findall(r"(?<= )[a-z]{6}(?= )", sample.context.split("coded words. ")[1])
    ranked = sorted(set(words), key=words.count, reverse=True)
    assert tuple(ranked[:3]) == sample.references
    assert words.count(ranked[2]) > words.count(ranked[3])


class FewWords(Texts):
    def words(self) -> tuple[list[str], list[str]]:
        return ["brave", "ox"], ["harbour", "harbours"]


def test_where_the_lists_end_the_novels_words_go_on() -> None:
    sample = build(TASKS["cwe"], 0, 1_000, FewWords(EXCERPT))
    listed = {*re.findall(r"\d+\. (\w+)", sample.context)}
    of_novels = {word for book in FewWords(EXCERPT).novels().values() for word in re.findall(r"\b[a-z]{4,}\b", book)}
    assert {"brave", "harbour"} <= listed
    assert len(listed & of_novels) >= len(listed) - 3 > 20
    assert "ox" not in listed, "too short"


@pytest.mark.parametrize("seed", range(5))
def test_no_word_holds_one_that_is_asked_for(seed: int) -> None:
    """The novels have both `wish` and `wished`."""
    sample = build(TASKS["cwe"], seed, 5_000, FewWords(EXCERPT))
    others = {*re.findall(r"\d+\. ([a-z]+)", sample.context)} - {*sample.references}
    assert [(word, asked) for word in others for asked in sample.references if asked in word] == []
