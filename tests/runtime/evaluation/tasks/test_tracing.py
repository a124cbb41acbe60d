"""Variables are tracked through assignments that follow a solved example."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from task_samples import TEXTS, build, count

from stratakv.runtime.evaluation.tasks import TASKS, Fit
from stratakv.runtime.evaluation.tasks.tracing import chain


def test_variables_are_assigned_in_order_after_a_solved_example() -> None:
    sample = build(TASKS["vt"], 3, 1_500)
    example, text = sample.context.split("\n\nMemorize and track")
    (value,) = re.findall(r"\d+", sample.question)
    first, *hops = re.findall(r"^VAR (\S+) = (?:VAR )?(\S+) ?$", text, re.MULTILINE)
    assert first == (sample.references[0], value)
    assert hops == list(zip(sample.references[1:], sample.references[:-1], strict=True))
    assert re.search(r"5 variables are assigned the value 12345, they are: [A-Z]{3}( [A-Z]{3}){4}$", example)


def test_a_chain_begins_with_the_value_and_hands_it_on() -> None:
    assert chain(["A", "B", "C"], "7") == ["VAR A = 7", "VAR B = VAR A ", "VAR C = VAR B "]


class Says(random.Random):
    """Draws `THE`, then names as ever."""

    word = "THE"

    def choices(self, population: Sequence[str], *rest: Any, **named: Any) -> list[str]:
        word, self.word = self.word, ""
        return [*word] or super().choices(population, *rest, **named)


def test_no_name_spells_a_part_of_the_other_words() -> None:
    """`THE` is in THERE: a reply that repeats the noise would name it."""
    rng = Says(0)
    sample = TASKS["vt"].build(rng, TEXTS, Fit(700, count))
    assert rng.word == ""
    assert "VAR THE" not in sample.context
