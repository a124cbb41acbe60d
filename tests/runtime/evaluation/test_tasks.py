"""The evaluation's tasks: every sample fits, is answerable from its context, and is scored as it says."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import EXCERPT

from stratakv.runtime.evaluation.tasks import TASKS, Fit, Sample, Task, select
from stratakv.runtime.evaluation.tasks.haystack import paragraphs, scatter, sentences
from stratakv.runtime.evaluation.tasks.invented import distinct, unique
from stratakv.runtime.evaluation.tasks.scores import all_of, any_of
from stratakv.runtime.evaluation.texts import Speech, Texts

TEXTS = Texts(EXCERPT)
LENGTHS = (700, 5_000)
SEEDS = range(4)
ONE_PLACE = {f"niah_{name}" for name in ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3")}
ONE_PLACE |= {"qa_1", "verse", "next_line", "turns"}
SAID_ONCE = {name for name in TASKS if name not in ("vt", "cwe", "fwe")}


def count(text: str) -> int:
    return len(text) // 4 + 1


def build(task: Task, seed: int, length: int) -> Sample:
    return task.build(random.Random(f"{task.name}/{seed}"), TEXTS, Fit(length, count))


every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
every_sample = pytest.mark.parametrize(("seed", "length"), [(seed, length) for seed in SEEDS for length in LENGTHS])


@every_task
@every_sample
def test_a_sample_fits_and_is_answerable(task: Task, seed: int, length: int) -> None:
    sample = build(task, seed, length)
    assert 0.7 * length < count(sample.prompt) <= length
    found = sample.history.lower()
    times = [found.count(reference.lower()) for reference in sample.references]
    assert set(times) == {1} if task.name in SAID_ONCE else min(times) >= 1
    assert (sample.depth is not None) == (task.name in ONE_PLACE)
    assert sample.depth is None or 0 <= sample.depth < 1
    assert not sample.prefix[-1:].isspace()
    assert len(sample.earlier) == task.turns
    said = "".join(f"\n{user}{reply}" for user, reply in sample.earlier)
    assert sample.prompt == f"{sample.context}{said}\n{sample.question}{sample.prefix}"
    assert all(user == user.strip() and reply[0] == " " for user, reply in sample.earlier)


@every_task
@every_sample
def test_right_replies_score_one_and_wrong_ones_nothing(task: Task, seed: int, length: int) -> None:
    sample = build(task, seed, length)
    assert task.score(sample.gold, sample.references) == 1
    assert task.score(sample.gold.upper() + "\n", sample.references) == 1
    for wrong in ("", "I do not know.", sample.question, sample.prefix):
        assert task.score(wrong, sample.references) == 0
    if task.name not in ("cwe", "vt"):  # these two hold solved examples and words that others share
        assert task.score(build(task, seed + 100, length).gold, sample.references) == 0


@every_task
@every_sample
def test_the_gold_reply_can_be_generated(task: Task, seed: int, length: int) -> None:
    """Tokenizers take about 2.5 characters of an answer at a time, but some only one digit."""
    gold = build(task, seed, length).gold
    digits = sum(letter.isdigit() for letter in gold)
    assert digits + (len(gold) - digits) / 2.5 + 8 <= task.max_new_tokens


@every_task
def test_a_sample_is_a_function_of_its_seed(task: Task) -> None:
    first, again, other = (build(task, seed, 1_000) for seed in (1, 1, 2))
    assert first == again
    assert first.context != other.context


@every_task
def test_a_length_that_is_too_short_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match=r"shortest text of this task has \d+ tokens, more than the 20 asked for"):
        build(task, 0, 20)


@pytest.mark.parametrize("name", sorted(ONE_PLACE))
def test_needles_stand_at_all_depths(name: str) -> None:
    depths = [build(TASKS[name], seed, 1_500).depth or 0.0 for seed in range(60)]
    quarters = [sum(quarter <= 4 * depth < quarter + 1 for depth in depths) for quarter in range(4)]
    assert min(quarters) >= 4


# What the contexts look like


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


def test_variables_are_assigned_in_order_after_a_solved_example() -> None:
    sample = build(TASKS["vt"], 3, 1_500)
    example, text = sample.context.split("\n\nMemorize and track")
    (value,) = re.findall(r"\d+", sample.question)
    first, *hops = re.findall(r"^VAR (\S+) = (?:VAR )?(\S+) ?$", text, re.MULTILINE)
    assert first == (sample.references[0], value)
    assert hops == list(zip(sample.references[1:], sample.references[:-1], strict=True))
    assert re.search(r"5 variables are assigned the value 12345, they are: [A-Z]{3}( [A-Z]{3}){4}$", example)


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


def test_the_second_hop_leads_to_the_answer() -> None:
    sample = build(TASKS["qa_2"], 1, 2_000)
    (worker,) = re.findall(r"the employer of (.*) live\?", sample.question)
    (employer,) = re.findall(
        rf"{worker} (?:keeps the books of|drives the carriage of|copies letters for) (.*?)\.", sample.context
    )
    assert re.search(rf"{employer} [a-z ]* the town of {sample.references[0]}\.", sample.context)
    assert re.findall(r"^Document (\d+):$", sample.context, re.MULTILINE)[:3] == ["1", "2", "3"]


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


# The parts


def test_tasks_are_selected_by_name() -> None:
    assert [task.name for task in select("vt, verse,vt")] == ["vt", "verse"]
    assert select(None) == list(TASKS.values())
    assert all(name == task.name for name, task in TASKS.items())
    with pytest.raises(ValueError, match=r"no task 'ruler'; known: niah_single_1, .*, said$"):
        select("ruler")


@pytest.mark.parametrize("score", [all_of, any_of])
@pytest.mark.parametrize("reply", ["", " ", "\n\t", "\x00\x1f", "12\n34"])
def test_replies_without_words_score_nothing(score: Callable[[str, tuple[str, ...]], float], reply: str) -> None:
    assert score(reply, ("1234", " x")) == 0


def test_scores_are_shares_of_substrings() -> None:
    assert all_of("It is ALPHA, and beta2.", ("Alpha", "BETA", "gamma", "delta")) == 0.5
    assert any_of("It is ALPHA.", ("gamma", "alpha")) == 1
    assert all_of("\x01one\ttwo\x02", ("one", "two")) == 1
    assert all_of("one\ttwo", ("one\ntwo",)) == 1  # control characters read as line breaks
    for score in (all_of, any_of):
        for references in ((), ("", "a")):
            with pytest.raises(ValueError, match="references"):
                score("a", references)


def test_a_sample_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="references"):
        Sample("context", "question", "", (" ",), " gold")


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=200), st.integers(0, 1_000), st.integers(1, 5), st.integers(1, 250)
)
def test_the_largest_fit_is_the_largest(costs: list[int], tokens: int, smallest: int, limit: int) -> None:
    def make(units: int) -> str:
        return "x" * sum(costs[place % len(costs)] for place in range(units))

    fit = Fit(tokens, len)
    if len(make(smallest)) > tokens:
        with pytest.raises(ValueError, match="shortest text"):
            fit.largest(make, smallest=smallest, limit=limit)
        return
    found = fit.largest(make, smallest=smallest, limit=limit)
    top = max(smallest, min(limit, tokens))
    assert found == max(units for units in range(smallest, top + 1) if len(make(units)) <= tokens)


@given(st.lists(st.integers(0, 60), min_size=2, max_size=60), st.integers(0, 60))
def test_lengths_that_shrink_now_and_then_are_never_exceeded(lengths: list[int], tokens: int) -> None:
    def make(units: int) -> str:
        return "x" * lengths[units - 1]

    fit, top = Fit(tokens, len), min(len(lengths), max(1, tokens))
    if lengths[0] <= tokens:
        found = fit.largest(make, limit=len(lengths))
        assert lengths[found - 1] <= tokens
        assert found == top or lengths[found] > tokens


def test_few_texts_are_counted() -> None:
    words = ["word " * random.Random(place).randrange(1, 60) for place in range(20_000)]
    counted = []

    def slow(text: str) -> int:
        counted.append(text)
        return text.count(" ")

    units = Fit(128_000, slow).largest(lambda units: "".join(words[:units]))
    assert units > 4_000
    assert len(counted) <= 14


def test_texts_are_split_where_they_should_be() -> None:
    assert sentences('He came. "Why?"  she\nsaid. "Now!" Mr. Elton left! e.g. this') == [
        "He came.", '"Why?" she said.', '"Now!"', "Mr. Elton left! e.g. this",
    ]  # fmt: skip
    long = "A paragraph of some length, " * 5
    assert paragraphs(f"CHAPTER I\n\n{long}\n\n\nShort.\n \n{long}\n") == [long.strip()] * 2


def test_needles_keep_their_order_and_may_stand_at_the_ends() -> None:
    assert scatter(["a", "b"], [(1.0, "4"), (0.0, "1"), (0.5, "2"), (0.6, "3")]) == ["1", "a", "2", "3", "b", "4"]


def test_invented_values_run_out_loudly() -> None:
    assert sorted(distinct(iter(["ab", "b", "cd"]).__next__, 2)) == ["ab", "cd"]
    values = unique(lambda: "only")
    assert next(values) == "only"
    with pytest.raises(ValueError, match=r"no new value in \d+ draws; the last was 'only'"):
        next(values)
