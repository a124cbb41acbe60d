"""The evaluation's tasks: every sample fits, is answerable from its context, and is scored as it says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_samples import build, count

from stratakv.runtime.evaluation.tasks import TASKS, Fit, Sample, Task, select
from stratakv.runtime.evaluation.tasks.invented import distinct, unique
from stratakv.runtime.evaluation.tasks.scores import all_of, any_of

LENGTHS = (700, 5_000)
SEEDS = range(4)
ONE_PLACE = {f"niah_{name}" for name in ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3")}
ONE_PLACE |= {"qa_1", "verse", "next_line", "turns"}
SAID_ONCE = {name for name in TASKS if name not in ("vt", "cwe", "fwe")}


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
    # Tokenizers take about 2.5 characters of an answer at a time, but some only one digit.
    digits = sum(letter.isdigit() for letter in sample.gold)
    assert digits + (len(sample.gold) - digits) / 2.5 + 8 <= task.max_new_tokens


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


def test_invented_values_run_out_loudly() -> None:
    assert sorted(distinct(iter(["ab", "b", "cd"]).__next__, 2)) == ["ab", "cd"]
    values = unique(lambda: "only")
    assert next(values) == "only"
    with pytest.raises(ValueError, match=r"no new value in \d+ draws; the last was 'only'"):
        next(values)
