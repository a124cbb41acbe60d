"""Verses and lines are asked for where they stand, and only those that can be told from all others."""

from __future__ import annotations

import random
import re

import pytest
from task_samples import build, count

from stratakv.runtime.evaluation.tasks import TASKS, Fit
from stratakv.runtime.evaluation.texts import Speech, Texts


def test_the_verse_and_the_line_are_the_ones_asked_for() -> None:
    verse = build(TASKS["verse"], 2, 1_000)
    (citation,) = re.findall(r"the verse (.*) begin", verse.question)
    assert f"\n{citation} {verse.references[0]}" in verse.context
    assert len(verse.references[0].split()) == 6
    line = build(TASKS["next_line"], 2, 1_000)
    (above,) = re.findall(r'the line "(.*)" in', line.question)
    assert f"\n{above}\n{line.gold[1:]}" in line.context
    assert line.gold[1:].startswith(line.references[0])


def test_the_text_goes_on_with_the_next_play() -> None:
    class TwoPlays(Texts):
        def plays(self) -> dict[str, list[Speech]]:
            speech = Speech("FIRST", ("It was a long and lonely night", "and nobody came down the road"))
            other = Speech("SECOND", ("The morning after was as bright", "as any that the village knew"))
            return {"a-winter-s-tale": [speech], "king-john": [other]}

    sample = TASKS["next_line"].build(random.Random(0), TwoPlays(), Fit(1_000, count))
    text = sample.context.split("\n\n", 1)[1]
    plays = [
        "A WINTER'S TALE\n\nFIRST:\nIt was a long and lonely night\nand nobody came down the road",
        "KING JOHN\n\nSECOND:\nThe morning after was as bright\nas any that the village knew",
    ]
    assert text in ("\n".join(plays), "\n".join(reversed(plays)))


def test_each_speech_stands_under_its_speaker_with_a_line_between() -> None:
    class OnePlay(Texts):
        def plays(self) -> dict[str, list[Speech]]:
            speech = Speech("FIRST", ("It was a long and lonely night", "and nobody came down the road"))
            return {"king-john": [speech, Speech("SECOND", ("Who goes there?",))]}

    sample = build(TASKS["next_line"], 0, 1_000, OnePlay())
    text = sample.context.split("\n\n", 1)[1]
    lines = "It was a long and lonely night\nand nobody came down the road"
    assert text == f"KING JOHN\n\nFIRST:\n{lines}\n\nSECOND:\nWho goes there?"
    assert sample.references == ("and nobody came down the road",)


def test_a_verse_that_begins_like_another_is_not_asked_for() -> None:
    class ThreeVerses(Texts):
        def verses(self) -> list[tuple[str, str]]:
            same = "And it came to pass in those days,"
            return [("Ruth 1:1", f"{same} and"), ("Ruth 1:2", f"{same} that"), ("Ruth 1:3", "Now there was a man of")]

    for seed in range(12):
        sample = build(TASKS["verse"], seed, 1_000, ThreeVerses())
        assert sample.references == ("Now there was a man of",)
        assert "Ruth 1:3" in sample.question


def test_a_text_of_which_nothing_can_be_asked_is_refused() -> None:
    class Refrain(Texts):
        def verses(self) -> list[tuple[str, str]]:
            return [(f"Psalms 136:{number}", "For his mercy endureth for ever.") for number in (1, 2, 3)]

    with pytest.raises(ValueError, match=r"none of [23] verses or lines can be asked for; ask for a longer context"):
        build(TASKS["verse"], 0, 1_000, Refrain())
